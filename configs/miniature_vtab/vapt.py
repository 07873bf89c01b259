# VAPT, miniature VTAB, the task in TASK.
_base_ = 'vpt.py'
# The maps have 3 x 3 patches.
model = dict(backbone=dict(prompts=dict(type='AdaptivePrompts', grid_size=3)))
work_dir = 'work_dirs/{{ fileBasenameNoExtension }}_' + _base_.task
