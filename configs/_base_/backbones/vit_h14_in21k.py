# ViT-H/14, supervised on ImageNet-21k (ViT-H_14.npz).
_base_ = 'vit_b16_in21k.py'
model = dict(
    backbone=dict(arch='huge', patch_size=14, init_cfg=dict(checkpoint='checkpoints/vit_h14_in21k.pth')),
    head=dict(in_channels=1280))
