# Linear probing, VTAB-1k: DTD.
_base_ = 'vit_b_vpt_dtd.py'
model = dict(backbone=dict(prompts=dict(num_tokens=0)))
