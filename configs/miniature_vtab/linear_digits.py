# Linear probing, miniature VTAB: digits.
_base_ = 'vpt_digits.py'
model = dict(backbone=dict(prompts=dict(num_tokens=0)))
