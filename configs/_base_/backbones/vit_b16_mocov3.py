# ViT-B/16, MoCo-v3 on ImageNet-1k (linear-vit-b-300ep.pth.tar).
_base_ = 'vit_b16_in21k.py'
model = dict(backbone=dict(init_cfg=dict(checkpoint='checkpoints/vit_b16_mocov3.pth')))
