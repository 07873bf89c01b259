# PRO-VAPT: as setr_pup_vit_b_provpt_ade20k.py, with prompts that depend on the input (docs/method/vapt.md).
_base_ = 'setr_pup_vit_b_provpt_ade20k.py'

model = dict(backbone=dict(prompts=dict(type='AdaptivePrompts')))
# The paper's criterion compares rows of unlike kinds with one another (docs/method/vapt.md).
custom_hooks = [dict(_base_.custom_hooks[0], pruner=dict(type='IdlenessPruner', criterion='gate_fisher'))]
