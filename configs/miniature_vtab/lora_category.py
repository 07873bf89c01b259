# LoRA, miniature VTAB: category. Ten epochs, for CPUs.
_base_ = [
    '../_base_/backbones/vit_s14_dinov2_42.py', '../_base_/datasets/miniature_vtab.py', '../_base_/methods/lora.py'
]
# The learning rate is the method's: on val200 of this task it had 80.0 %, a quarter of it 78.5.
model = dict(
    backbone=dict(_base_.lora, _delete_=True, module=dict(_base_.model.backbone, type='VisionTransformer')),
    head=dict(num_classes=10))
train_dataloader = val_dataloader = test_dataloader = dict(dataset=dict(task='category', num_classes=10))
train_cfg = dict(max_epochs=10, val_interval=10)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.001, by_epoch=True, begin=0, end=1, convert_to_iter_based=True),
    dict(type='CosineAnnealingLR', by_epoch=True, begin=1, end=10, convert_to_iter_based=True)
]
