# Linear probing, VTAB-1k: dSpr-Loc.
_base_ = 'vit_b_vpt_dsprites_loc.py'
model = dict(backbone=dict(prompts=dict(num_tokens=0)))
