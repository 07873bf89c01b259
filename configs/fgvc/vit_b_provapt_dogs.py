# PRO-VAPT, FGVC: Stanford Dogs.
_base_ = 'vit_b_provpt_dogs.py'
model = dict(backbone=dict(prompts=dict(type='AdaptivePrompts')))
