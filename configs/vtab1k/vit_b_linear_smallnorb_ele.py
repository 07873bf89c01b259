# Linear probing, VTAB-1k: sNORB-Ele.
_base_ = 'vit_b_vpt_smallnorb_ele.py'
model = dict(backbone=dict(prompts=dict(num_tokens=0)))
