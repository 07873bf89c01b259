# VPT-Deep: SETR-MLA on ADE20k, ViT-L/16 pre-trained on ImageNet-21k and frozen, 160k iterations.
# Why the path is found so: setr_pup_vit_l_vpt_ade20k.py.
_base_ = [
    __import__('mmengine').utils.get_installed_path('mmseg') +
    '/.mim/configs/setr/setr_vit-l_mla_8xb2-160k_ade20k-512x512.py', '_base_/setr_ade20k.py'
]

data_preprocessor = _base_.in21k_pixels
model = dict(
    data_preprocessor=data_preprocessor,
    backbone=dict(_base_.backbone, _delete_=True, out_indices=[5, 11, 17, 23]))
tta_pipeline = _base_.multi_scale
optim_wrapper = dict(type='mmprovpt.FiniteOptimWrapper')
default_hooks = dict(
    classes=dict(type='mmprovpt.ClassCheckHook'), seed=dict(type='mmprovpt.IterationSeedHook'))
