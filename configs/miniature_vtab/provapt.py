# PRO-VAPT, miniature VTAB, the task in TASK.
_base_ = 'provpt.py'
# The maps have 3 x 3 patches.
model = dict(backbone=dict(prompts=dict(type='AdaptivePrompts', grid_size=3)))
# The paper's criterion compares rows of unlike kinds with one another (docs/method/vapt.md).
custom_hooks = [dict(_base_.custom_hooks[0], pruner=dict(type='IdlenessPruner', criterion='gate_fisher'))]
work_dir = 'work_dirs/{{ fileBasenameNoExtension }}_' + _base_.task
