# Prompts relocate after every 1600 of 160,000 iterations: 100 times, as in the paper's classification (100 epochs).
_base_ = 'relocation.py'

custom_hooks = [dict(_base_.custom_hooks[0], interval=1600, by_epoch=False)]
