# PRO-VAPT, FGVC: Oxford Flowers.
_base_ = 'vit_b_provpt_flowers.py'
model = dict(backbone=dict(prompts=dict(type='AdaptivePrompts')))
