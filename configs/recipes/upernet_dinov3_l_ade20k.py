# UPerNet on DINOv3 ViT-L/16: as that of the ViT-B.
_base_ = 'upernet_dinov3_b_ade20k.py'
model = dict(
    backbone=dict(model_name='vit_large_patch16_dinov3', out_indices=(5, 11, 17, 23)), neck=dict(embed_dim=1024),
    decode_head=dict(in_channels=[1024] * 4), auxiliary_head=dict(in_channels=1024))
