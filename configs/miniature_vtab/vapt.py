# VAPT, miniature VTAB, the task in TASK.
_base_ = 'vpt.py'
# The maps have 3 x 3 patches.
model = dict(backbone=dict(prompts=dict(type='AdaptivePrompts', grid_size=3)))
# With these its figures were measured (docs/evidence/results.md); VPT's were not tried.
optim_wrapper = dict(optimizer=dict(lr=0.005, weight_decay=0.0001), clip_grad=None)
work_dir = 'work_dirs/{{ fileBasenameNoExtension }}_' + _base_.task
