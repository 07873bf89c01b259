# VPT-Shallow, VTAB-1k, the task in TASK.
_base_ = 'vit_b_vpt.py'
model = dict(backbone=dict(prompts=dict(type='ShallowPrompts')))
work_dir = 'work_dirs/{{ fileBasenameNoExtension }}_' + _base_.task
