# PRO-VAPT, VTAB-1k: EuroSAT.
_base_ = 'vit_b_provpt_eurosat.py'
model = dict(backbone=dict(prompts=dict(type='AdaptivePrompts')))
