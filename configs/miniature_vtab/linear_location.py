# Linear probing, miniature VTAB: location.
_base_ = 'vpt_location.py'
model = dict(backbone=dict(prompts=dict(num_tokens=0)))
