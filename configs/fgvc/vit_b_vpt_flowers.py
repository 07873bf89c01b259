# VPT-Deep, FGVC: Oxford Flowers.
_base_ = ['../_base_/backbones/vit_b16_in21k.py', '../_base_/datasets/fgvc.py', '../_base_/methods/vpt.py']
model = dict(backbone=dict(prompts=dict(type='StaticPrompts', num_tokens=5)), head=dict(num_classes=102))
train_dataloader = val_dataloader = test_dataloader = dict(dataset=dict(task='flowers'))
grid_winner = None  # unknown: the learning rate and weight decay are the method's
