# VPT-Shallow, VTAB-1k: Clevr-Count.
_base_ = 'vit_b_vpt_clevr_count.py'
model = dict(backbone=dict(prompts=dict(type='ShallowPrompts')))
