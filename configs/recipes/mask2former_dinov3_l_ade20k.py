# Mask2Former, semantic, on DINOv3 ViT-L/16: as that of the ViT-B.
_base_ = 'mask2former_dinov3_b_ade20k.py'
model = dict(
    backbone=dict(model_name='vit_large_patch16_dinov3', out_indices=(23, )), neck=dict(in_channels=1024))
