# PRO-VAPT, VTAB-1k: sNORB-Azi.
_base_ = 'vit_b_provpt_smallnorb_azi.py'
model = dict(backbone=dict(prompts=dict(type='AdaptivePrompts')))
