"""The nineteen tasks of VTAB-1k (Zhai et al. 2019), in VTAB's order. Imports nothing, so that any tool may read it."""
from typing import Dict, NamedTuple

GROUPS = ('Natural', 'Specialized', 'Structured')
# Training images of each split; train800val200 is the other two together.
SPLITS = dict(train800=800, val200=200, train800val200=1000, test=None)


class VTABTask(NamedTuple):
    """One task.

    Attributes:
        title: As the papers print it.
        group: One of GROUPS.
        num_classes: Number of classes.
        num_test: Images of the test split.
    """
    title: str
    group: str
    num_classes: int
    num_test: int


# By the name of the folder that the field shares.
VTAB1K: Dict[str, VTABTask] = dict(
    cifar=VTABTask('CIFAR-100', 'Natural', 100, 10000),
    caltech101=VTABTask('Caltech101', 'Natural', 102, 6084),
    dtd=VTABTask('DTD', 'Natural', 47, 1880),
    oxford_flowers102=VTABTask('Flowers102', 'Natural', 102, 6149),
    oxford_iiit_pet=VTABTask('Pets', 'Natural', 37, 3669),
    svhn=VTABTask('SVHN', 'Natural', 10, 26032),
    sun397=VTABTask('Sun397', 'Natural', 397, 21750),
    patch_camelyon=VTABTask('Camelyon', 'Specialized', 2, 32768),
    eurosat=VTABTask('EuroSAT', 'Specialized', 10, 5400),
    resisc45=VTABTask('Resisc45', 'Specialized', 45, 6300),
    diabetic_retinopathy=VTABTask('Retinopathy', 'Specialized', 5, 42670),
    clevr_count=VTABTask('Clevr-Count', 'Structured', 8, 15000),
    clevr_dist=VTABTask('Clevr-Dist', 'Structured', 6, 15000),
    dmlab=VTABTask('DMLab', 'Structured', 6, 22735),
    kitti=VTABTask('KITTI-Dist', 'Structured', 4, 711),
    dsprites_loc=VTABTask('dSpr-Loc', 'Structured', 16, 73728),
    dsprites_ori=VTABTask('dSpr-Ori', 'Structured', 16, 73728),
    smallnorb_azi=VTABTask('sNORB-Azim', 'Structured', 18, 12150),
    smallnorb_ele=VTABTask('sNORB-Elev', 'Structured', 9, 12150))
