# The frozen backbone alone on the demo's image folder: no prompts, only the head trains.
_base_ = 'swin_mini_vpt_digits.py'

model = dict(backbone=dict(prompts=dict(num_tokens=0)))
