# Full fine-tuning, miniature VTAB, the task in TASK. Ten epochs, for CPUs.
_base_ = ['../_base_/backbones/vit_s14_dinov2_42.py', '../_base_/tasks/miniature_vtab.py', '../_base_/methods/full.py']
model = dict(backbone=dict(type='VisionTransformer'), head=dict(num_classes=_base_.num_classes))
train_cfg = dict(max_epochs=10, val_interval=10)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.001, by_epoch=True, begin=0, end=1, convert_to_iter_based=True),
    dict(type='CosineAnnealingLR', by_epoch=True, begin=1, end=10, convert_to_iter_based=True)
]
work_dir = 'work_dirs/{{ fileBasenameNoExtension }}_' + _base_.task
