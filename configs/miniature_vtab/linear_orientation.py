# Linear probing, miniature VTAB: orientation.
_base_ = 'vpt_orientation.py'
model = dict(backbone=dict(prompts=dict(num_tokens=0)))
