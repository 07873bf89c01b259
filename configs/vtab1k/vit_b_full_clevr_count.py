# Full fine-tuning, VTAB-1k: Clevr-Count.
_base_ = ['../_base_/backbones/vit_b16_in21k.py', '../_base_/datasets/vtab1k.py', '../_base_/methods/full.py']
model = dict(backbone=dict(type='VisionTransformer'), head=dict(num_classes=8))
train_dataloader = val_dataloader = test_dataloader = dict(dataset=dict(task='clevr_count'))
grid_winner = None  # unknown: the learning rate and weight decay are the method's
