# Linear probing, FGVC: Oxford Flowers.
_base_ = 'vit_b_vpt_flowers.py'
model = dict(backbone=dict(prompts=dict(num_tokens=0)))
