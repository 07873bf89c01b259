# LoRA, FGVC, the task in TASK.
_base_ = ['../_base_/backbones/vit_b16_in21k.py', '../_base_/tasks/fgvc.py', '../_base_/methods/lora.py']
model = dict(
    backbone=dict(_base_.lora, _delete_=True, module=dict(_base_.model.backbone, type='VisionTransformer')),
    head=dict(num_classes=_base_.num_classes))
work_dir = 'work_dirs/{{ fileBasenameNoExtension }}_' + _base_.task
