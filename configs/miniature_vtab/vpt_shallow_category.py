# VPT-Shallow, miniature VTAB: category.
_base_ = 'vpt_category.py'
model = dict(backbone=dict(prompts=dict(type='ShallowPrompts')))
