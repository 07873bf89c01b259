# Linear probing, miniature VTAB, the task in TASK.
_base_ = 'vpt.py'
model = dict(backbone=dict(prompts=dict(num_tokens=0)))
work_dir = 'work_dirs/{{ fileBasenameNoExtension }}_' + _base_.task
