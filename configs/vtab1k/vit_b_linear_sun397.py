# Linear probing, VTAB-1k: Sun397.
_base_ = 'vit_b_vpt_sun397.py'
model = dict(backbone=dict(prompts=dict(num_tokens=0)))
