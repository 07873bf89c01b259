# Linear probing, VTAB-1k: SVHN.
_base_ = 'vit_b_vpt_svhn.py'
model = dict(backbone=dict(prompts=dict(num_tokens=0)))
