# VPT-Deep, VTAB-1k: CIFAR-100, on Swin-B (001, Tab. 4: 81.33). The papers do not say how many prompts.
_base_ = ['../_base_/backbones/swin_b_in21k.py', '../_base_/datasets/vtab1k.py', '../_base_/methods/vpt.py']
model = dict(backbone=dict(prompts=dict(type='StaticPrompts', num_tokens=10)), head=dict(num_classes=100))
train_dataloader = val_dataloader = test_dataloader = dict(dataset=dict(task='cifar'))
grid_winner = None  # unknown: the learning rate and weight decay are the method's
