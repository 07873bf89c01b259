# PRO-VPT, FGVC, the task in TASK.
_base_ = ['../_base_/backbones/vit_b16_in21k.py', '../_base_/tasks/fgvc.py', '../_base_/methods/provpt.py']
model = dict(
    backbone=dict(prompts=dict(type='StaticPrompts', num_tokens=_base_.num_tokens)),
    head=dict(num_classes=_base_.num_classes))
work_dir = 'work_dirs/{{ fileBasenameNoExtension }}_' + _base_.task
