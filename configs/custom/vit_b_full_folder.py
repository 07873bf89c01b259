# Full fine-tuning on an image folder of your own: docs/how-to/custom_data.md.
_base_ = [
    '../_base_/backbones/vit_b16_in21k.py', '../_base_/datasets/image_folder.py', '../_base_/methods/full.py'
]
model = dict(backbone=dict(type='VisionTransformer'))
train_cfg = dict(val_interval=10)
# Refuses folders whose classes do not fit the head or each other.
default_hooks = dict(classes=dict(type='mmprovpt.ClassCheckHook'))
