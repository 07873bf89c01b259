# Linear probing, VTAB-1k: Clevr-Dist.
_base_ = 'vit_b_vpt_clevr_dist.py'
model = dict(backbone=dict(prompts=dict(num_tokens=0)))
