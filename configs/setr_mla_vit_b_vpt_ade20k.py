# VPT-Deep: SETR-MLA on ADE20k, ViT-B/16 pre-trained on ImageNet-21k and frozen, 160k iterations.
_base_ = 'setr_mla_vit_l_vpt_ade20k.py'

# A quarter of the depth each, as in the ViT-L.
model = dict(
    backbone=dict(
        arch='base', out_indices=[2, 5, 8, 11], init_cfg=dict(checkpoint='checkpoints/vit_b16_in21k.pth')),
    neck=dict(in_channels=[768, 768, 768, 768]))
