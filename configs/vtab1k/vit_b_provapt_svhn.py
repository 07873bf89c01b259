# PRO-VAPT, VTAB-1k: SVHN.
_base_ = 'vit_b_provpt_svhn.py'
model = dict(backbone=dict(prompts=dict(type='AdaptivePrompts')))
