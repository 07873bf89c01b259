# LoRA, VTAB-1k, the task in TASK, on Swin-B.
_base_ = ['../_base_/backbones/swin_b_in21k.py', '../_base_/tasks/vtab1k.py', '../_base_/methods/lora.py']
model = dict(
    backbone=dict(_base_.lora, _delete_=True, module=dict(_base_.model.backbone, type='SwinTransformer')),
    head=dict(num_classes=_base_.num_classes))
work_dir = 'work_dirs/{{ fileBasenameNoExtension }}_' + _base_.task
