# VPT-Shallow, miniature VTAB, the task in TASK.
_base_ = 'vpt.py'
model = dict(backbone=dict(prompts=dict(type='ShallowPrompts')))
work_dir = 'work_dirs/{{ fileBasenameNoExtension }}_' + _base_.task
