# PRO-VPT as the paper says: as VPT, but prompts relocate after each epoch, and the learning rate stays (PRO-VPT,
# Sec. 4.1 and Table i).
_base_ = ['vpt.py', 'relocation.py']

param_scheduler = []
