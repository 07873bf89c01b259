# Linear probing, VTAB-1k: Caltech101.
_base_ = 'vit_b_vpt_caltech101.py'
model = dict(backbone=dict(prompts=dict(num_tokens=0)))
