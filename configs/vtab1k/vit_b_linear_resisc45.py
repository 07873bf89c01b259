# Linear probing, VTAB-1k: Resisc45.
_base_ = 'vit_b_vpt_resisc45.py'
model = dict(backbone=dict(prompts=dict(num_tokens=0)))
