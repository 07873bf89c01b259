# ViT-B/16, masked autoencoder on ImageNet-1k (mae_pretrain_vit_base.pth).
_base_ = 'vit_b16_in21k.py'
model = dict(
    data_preprocessor=dict(mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375]),
    backbone=dict(init_cfg=dict(checkpoint='checkpoints/vit_b16_mae.pth')))
