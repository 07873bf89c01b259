# PRO-VAPT, FGVC: NABirds.
_base_ = 'vit_b_provpt_nabirds.py'
model = dict(backbone=dict(prompts=dict(type='AdaptivePrompts')))
