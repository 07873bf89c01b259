"""The 19 tasks of VTAB-1k. Needs no mmpretrain, so configs and tools can import it."""
from typing import NamedTuple

from mmprovpt.errors import ConfigError
from mmprovpt.shipped import shipped

GROUPS = ('Natural', 'Specialized', 'Structured')
# Images of a training split; of 'test' each task has its own number.
SPLITS = dict(train800=800, val200=200, train800val200=1000, test=None)


class VTABTask(NamedTuple):
    """One task of VTAB-1k.

    Attributes:
        name: Of its folder, as NOAH's, RepAdapter's and ConvPass' prepared data have it.
        title: As tables print it.
        group: Of GROUPS.
        num_classes: Labels are in [0, num_classes).
        num_test: Images of the test split (VPT, arXiv:2203.12119, Table 8).
    """
    name: str
    title: str
    group: str
    num_classes: int
    num_test: int


_NATURAL, _SPECIALIZED, _STRUCTURED = GROUPS
# In the order of the benchmark's tables.
TASKS: tuple[VTABTask, ...] = (
    VTABTask('cifar', 'CIFAR-100', _NATURAL, 100, 10000),
    VTABTask('caltech101', 'Caltech101', _NATURAL, 102, 6084),
    VTABTask('dtd', 'DTD', _NATURAL, 47, 1880),
    VTABTask('oxford_flowers102', 'Flowers102', _NATURAL, 102, 6149),
    VTABTask('oxford_iiit_pet', 'Pets', _NATURAL, 37, 3669),
    VTABTask('svhn', 'SVHN', _NATURAL, 10, 26032),
    VTABTask('sun397', 'Sun397', _NATURAL, 397, 21750),
    VTABTask('patch_camelyon', 'Camelyon', _SPECIALIZED, 2, 32768),
    VTABTask('eurosat', 'EuroSAT', _SPECIALIZED, 10, 5400),
    VTABTask('resisc45', 'Resisc45', _SPECIALIZED, 45, 6300),
    VTABTask('diabetic_retinopathy', 'Retinopathy', _SPECIALIZED, 5, 42670),
    VTABTask('clevr_count', 'Clevr-Count', _STRUCTURED, 8, 15000),
    VTABTask('clevr_dist', 'Clevr-Dist', _STRUCTURED, 6, 15000),
    VTABTask('dmlab', 'DMLab', _STRUCTURED, 6, 22735),
    VTABTask('kitti', 'KITTI-Dist', _STRUCTURED, 4, 711),
    VTABTask('dsprites_loc', 'dSpr-Loc', _STRUCTURED, 16, 73728),
    VTABTask('dsprites_ori', 'dSpr-Ori', _STRUCTURED, 16, 73728),
    VTABTask('smallnorb_azi', 'sNORB-Azim', _STRUCTURED, 18, 12150),
    VTABTask('smallnorb_ele', 'sNORB-Ele', _STRUCTURED, 9, 12150),
)
BY_NAME: dict[str, VTABTask] = {task.name: task for task in TASKS}

ADVICE = (f'put the task there as {shipped("docs/how-to/datasets.md")} describes '
          '(`mmprovpt vtab1k` or `mmprovpt miniature-vtab` write it), or override data_root')


def find_num_classes(task: str, num_classes: int | None = None) -> int:
    """The number of classes of a task.

    Args:
        task: Name of a task's folder.
        num_classes: Needed for what is not one of the 19 tasks.

    Raises:
        ConfigError: An unknown task without ``num_classes``, or one that contradicts the benchmark.
    """
    known = BY_NAME.get(task)
    if num_classes is None and known is None:
        raise ConfigError(f'VTAB-1k has no task {task!r}; known: {", ".join(BY_NAME)}. For a folder of your own in the '
                          'same layout give num_classes too')
    if known and num_classes not in (None, known.num_classes):
        raise ConfigError(f'num_classes = {num_classes!r}: {task} has {known.num_classes} classes')
    if num_classes is not None and (not isinstance(num_classes, int) or num_classes < 1 or not task):
        raise ConfigError(f'task = {task!r}, num_classes = {num_classes!r}: expected the name of a folder and a number '
                          '>= 1')
    return num_classes or known.num_classes
