# PRO-VAPT, FGVC: CUB-200-2011.
_base_ = 'vit_b_provpt_cub.py'
model = dict(backbone=dict(prompts=dict(type='AdaptivePrompts')))
