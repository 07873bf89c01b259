# PRO-VAPT, VTAB-1k, the task in TASK.
_base_ = 'vit_b_provpt.py'
model = dict(backbone=dict(prompts=dict(type='AdaptivePrompts')))
# The paper's criterion compares rows of unlike kinds with one another (docs/method/vapt.md).
custom_hooks = [dict(_base_.custom_hooks[0], pruner=dict(type='IdlenessPruner', criterion='gate_fisher'))]
work_dir = 'work_dirs/{{ fileBasenameNoExtension }}_' + _base_.task
