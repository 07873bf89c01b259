# Linear probing, VTAB-1k: dSpr-Ori.
_base_ = 'vit_b_vpt_dsprites_ori.py'
model = dict(backbone=dict(prompts=dict(num_tokens=0)))
