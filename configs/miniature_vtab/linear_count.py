# Linear probing, miniature VTAB: count.
_base_ = 'vpt_count.py'
model = dict(backbone=dict(prompts=dict(num_tokens=0)))
