# VPT-Deep, FGVC: Stanford Cars.
_base_ = ['../_base_/backbones/vit_b16_in21k.py', '../_base_/datasets/fgvc.py', '../_base_/methods/vpt.py']
model = dict(backbone=dict(prompts=dict(type='StaticPrompts', num_tokens=200)), head=dict(num_classes=196))
train_dataloader = val_dataloader = test_dataloader = dict(dataset=dict(task='cars'))
grid_winner = None  # unknown: the learning rate and weight decay are the method's
