# ViT-L/16, supervised on ImageNet-21k (ViT-L_16.npz).
_base_ = 'vit_b16_in21k.py'
model = dict(
    backbone=dict(arch='large', init_cfg=dict(checkpoint='checkpoints/vit_l16_in21k.pth')),
    head=dict(in_channels=1024))
