# PRO-VAPT, VTAB-1k: CIFAR-100.
_base_ = 'vit_b_provpt_cifar.py'
model = dict(backbone=dict(prompts=dict(type='AdaptivePrompts')))
