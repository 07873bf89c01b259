# Linear probing, FGVC: Stanford Dogs.
_base_ = 'vit_b_vpt_dogs.py'
model = dict(backbone=dict(prompts=dict(num_tokens=0)))
