# ViT-B/14, DINOv2 (dinov2_vitb14_pretrain.pth). Its positions are those of 518 pixels: convert with --img-size 224.
_base_ = 'vit_b16_in21k.py'
model = dict(
    data_preprocessor=dict(mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375]),
    backbone=dict(
        patch_size=14,
        layer_scale_init_value=1e-5,  # the checkpoint has the values
        init_cfg=dict(checkpoint='checkpoints/vit_b14_dinov2.pth')))
