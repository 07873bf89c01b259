# LoRA, VTAB-1k: Retinopathy.
_base_ = ['../_base_/backbones/vit_b16_in21k.py', '../_base_/datasets/vtab1k.py', '../_base_/methods/lora.py']
model = dict(
    backbone=dict(_base_.lora, _delete_=True, module=dict(_base_.model.backbone, type='VisionTransformer')),
    head=dict(num_classes=5))
train_dataloader = val_dataloader = test_dataloader = dict(dataset=dict(task='diabetic_retinopathy'))
grid_winner = None  # unknown: the learning rate and weight decay are the method's
