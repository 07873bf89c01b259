# VPT-Shallow, FGVC: Stanford Cars.
_base_ = 'vit_b_vpt_cars.py'
model = dict(backbone=dict(prompts=dict(type='ShallowPrompts')))
