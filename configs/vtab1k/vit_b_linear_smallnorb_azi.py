# Linear probing, VTAB-1k: sNORB-Azi.
_base_ = 'vit_b_vpt_smallnorb_azi.py'
model = dict(backbone=dict(prompts=dict(num_tokens=0)))
