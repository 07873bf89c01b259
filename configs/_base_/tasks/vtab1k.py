# A task of VTAB-1k, chosen from outside: TASK=svhn python tools/train.py configs/vtab1k/vit_b_lora.py
_base_ = '../datasets/vtab1k.py'
# Below `_base_`: MMEngine takes a file that begins with an import for a config of its lazy kind.
from mmprovpt.datasets.vtab1k_tasks import find_num_classes  # noqa: E402

task = '{{$TASK:cifar}}'
num_classes = find_num_classes(task)  # for an unknown task the error names those that there are
# In each block. VPT's numbers for a ViT-B/16, which PRO-VPT takes over.
num_tokens = dict(
    cifar=10, caltech101=10, dtd=10, oxford_flowers102=1, oxford_iiit_pet=1, svhn=50, sun397=5,
    patch_camelyon=100, eurosat=100, resisc45=10, diabetic_retinopathy=1,
    clevr_count=50, clevr_dist=200, dmlab=100, kitti=50, dsprites_loc=10, dsprites_ori=50, smallnorb_azi=200,
    smallnorb_ele=200)[task]
train_dataloader = val_dataloader = test_dataloader = dict(dataset=dict(task=task))
