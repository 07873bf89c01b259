# Linear probing, VTAB-1k: CIFAR-100, on Swin-B.
_base_ = 'swin_b_vpt_cifar.py'
model = dict(backbone=dict(prompts=dict(num_tokens=0)))
