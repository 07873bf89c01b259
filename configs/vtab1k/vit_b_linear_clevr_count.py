# Linear probing, VTAB-1k: Clevr-Count.
_base_ = 'vit_b_vpt_clevr_count.py'
model = dict(backbone=dict(prompts=dict(num_tokens=0)))
