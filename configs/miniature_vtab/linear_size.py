# Linear probing, miniature VTAB: size.
_base_ = 'vpt_size.py'
model = dict(backbone=dict(prompts=dict(num_tokens=0)))
