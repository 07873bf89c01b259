# VPT-Deep on an image folder of your own: as its PRO-VPT twin, but prompts stay, and
# gradients are not clipped.
_base_ = [
    '../_base_/backbones/vit_b16_in21k.py', '../_base_/datasets/image_folder.py', '../_base_/methods/vpt.py'
]
model = dict(backbone=dict(prompts=dict(type='StaticPrompts', num_tokens=10)))
train_cfg = dict(val_interval=10)
# Refuses folders whose classes do not fit the head or each other.
default_hooks = dict(classes=dict(type='mmprovpt.ClassCheckHook'))
