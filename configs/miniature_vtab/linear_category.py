# Linear probing, miniature VTAB: category.
_base_ = 'vpt_category.py'
model = dict(backbone=dict(prompts=dict(num_tokens=0)))
