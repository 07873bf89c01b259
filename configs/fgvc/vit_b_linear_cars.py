# Linear probing, FGVC: Stanford Cars.
_base_ = 'vit_b_vpt_cars.py'
model = dict(backbone=dict(prompts=dict(num_tokens=0)))
