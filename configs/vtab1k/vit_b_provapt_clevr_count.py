# PRO-VAPT, VTAB-1k: Clevr-Count.
_base_ = 'vit_b_provpt_clevr_count.py'
model = dict(backbone=dict(prompts=dict(type='AdaptivePrompts')))
