# Linear probing, VTAB-1k, the task in TASK, on Swin-B.
_base_ = 'swin_b_vpt.py'
model = dict(backbone=dict(prompts=dict(num_tokens=0)))
work_dir = 'work_dirs/{{ fileBasenameNoExtension }}_' + _base_.task
