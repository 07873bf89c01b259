# Full fine-tuning, FGVC: Stanford Cars.
_base_ = ['../_base_/backbones/vit_b16_in21k.py', '../_base_/datasets/fgvc.py', '../_base_/methods/full.py']
model = dict(backbone=dict(type='VisionTransformer'), head=dict(num_classes=196))
train_dataloader = val_dataloader = test_dataloader = dict(dataset=dict(task='cars'))
grid_winner = None  # unknown: the learning rate and weight decay are the method's
