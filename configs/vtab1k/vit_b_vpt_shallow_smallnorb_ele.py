# VPT-Shallow, VTAB-1k: sNORB-Ele.
_base_ = 'vit_b_vpt_smallnorb_ele.py'
model = dict(backbone=dict(prompts=dict(type='ShallowPrompts')))
