# PRO-VAPT, VTAB-1k: Retinopathy.
_base_ = 'vit_b_provpt_diabetic_retinopathy.py'
model = dict(backbone=dict(prompts=dict(type='AdaptivePrompts')))
