# LoRA, VTAB-1k: Flowers102.
_base_ = ['../_base_/backbones/vit_b16_in21k.py', '../_base_/datasets/vtab1k.py', '../_base_/methods/lora.py']
model = dict(
    backbone=dict(_base_.lora, _delete_=True, module=dict(_base_.model.backbone, type='VisionTransformer')),
    head=dict(num_classes=102))
train_dataloader = val_dataloader = test_dataloader = dict(dataset=dict(task='oxford_flowers102'))
grid_winner = None  # unknown: the learning rate and weight decay are the method's
