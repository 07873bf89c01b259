# VPT-Deep on the demo's data: the prompts stay where they start.
_base_ = 'setr_pup_vit_mini_provpt_digits.py'

custom_hooks = []
