# VPT-Deep, VTAB-1k: Flowers102.
_base_ = ['../_base_/backbones/vit_b16_in21k.py', '../_base_/datasets/vtab1k.py', '../_base_/methods/vpt.py']
model = dict(backbone=dict(prompts=dict(type='StaticPrompts', num_tokens=1)), head=dict(num_classes=102))
train_dataloader = val_dataloader = test_dataloader = dict(dataset=dict(task='oxford_flowers102'))
