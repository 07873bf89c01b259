# Linear probing, VTAB-1k: DMLab.
_base_ = 'vit_b_vpt_dmlab.py'
model = dict(backbone=dict(prompts=dict(num_tokens=0)))
