# ViT-S/14, DINOv2, for images of 42 pixels: benchmarks on a CPU. Convert with --img-size 42 (docs/how-to/weights.md).
_base_ = 'vit_b14_dinov2.py'
model = dict(
    backbone=dict(
        arch='dinov2-small',
        img_size=42,
        init_cfg=dict(checkpoint='checkpoints/vit_s14_dinov2_42.pth')),
    head=dict(in_channels=384))
