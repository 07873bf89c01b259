# VAPT: as setr_pup_vit_b_vpt_ade20k.py, with prompts that depend on the input (docs/method/vapt.md).
_base_ = 'setr_pup_vit_b_vpt_ade20k.py'

model = dict(backbone=dict(prompts=dict(type='AdaptivePrompts')))
