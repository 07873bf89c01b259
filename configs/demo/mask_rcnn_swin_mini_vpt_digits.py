# VPT-Deep on the demo's data: the prompts stay where they start.
_base_ = 'mask_rcnn_swin_mini_provpt_digits.py'

custom_hooks = []
