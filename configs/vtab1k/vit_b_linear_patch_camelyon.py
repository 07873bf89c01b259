# Linear probing, VTAB-1k: Camelyon.
_base_ = 'vit_b_vpt_patch_camelyon.py'
model = dict(backbone=dict(prompts=dict(num_tokens=0)))
