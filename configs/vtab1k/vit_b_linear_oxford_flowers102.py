# Linear probing, VTAB-1k: Flowers102.
_base_ = 'vit_b_vpt_oxford_flowers102.py'
model = dict(backbone=dict(prompts=dict(num_tokens=0)))
