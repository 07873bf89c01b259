# PRO-VAPT, miniature VTAB, the task in TASK.
_base_ = ['vapt.py', '../_base_/methods/relocation.py']
# The paper's criterion compares rows of unlike kinds with one another (docs/method/vapt.md).
custom_hooks = [dict(_base_.custom_hooks[0], pruner=dict(type='IdlenessPruner', criterion='gate_fisher'))]
param_scheduler = []
work_dir = 'work_dirs/{{ fileBasenameNoExtension }}_' + _base_.task
