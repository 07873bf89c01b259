# ViT-B/16, masked autoencoder on ImageNet-1k (mae_pretrain_vit_base.pth).
_base_ = 'vit_b16_in21k.py'
model = dict(backbone=dict(init_cfg=dict(checkpoint='checkpoints/vit_b16_mae.pth')))
