# Linear probing, VTAB-1k: CIFAR-100.
_base_ = 'vit_b_vpt_cifar.py'
model = dict(backbone=dict(prompts=dict(num_tokens=0)))
