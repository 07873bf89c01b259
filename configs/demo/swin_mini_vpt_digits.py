# VPT-Deep on the demo's image folder: the prompts stay where they start.
_base_ = 'swin_mini_provpt_digits.py'

custom_hooks = []
