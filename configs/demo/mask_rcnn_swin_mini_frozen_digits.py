# The frozen backbone alone on the demo's data: no prompts, only neck and heads train.
_base_ = 'mask_rcnn_swin_mini_vpt_digits.py'

model = dict(backbone=dict(prompts=dict(num_tokens=0)))
