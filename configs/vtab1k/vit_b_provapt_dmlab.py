# PRO-VAPT, VTAB-1k: DMLab.
_base_ = 'vit_b_provpt_dmlab.py'
model = dict(backbone=dict(prompts=dict(type='AdaptivePrompts')))
