# Linear probing, VTAB-1k: EuroSAT.
_base_ = 'vit_b_vpt_eurosat.py'
model = dict(backbone=dict(prompts=dict(num_tokens=0)))
