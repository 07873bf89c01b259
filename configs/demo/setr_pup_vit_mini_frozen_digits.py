# The frozen backbone alone on the demo's data: no prompts, only heads train.
_base_ = 'setr_pup_vit_mini_vpt_digits.py'

model = dict(backbone=dict(prompts=dict(num_tokens=0)))
