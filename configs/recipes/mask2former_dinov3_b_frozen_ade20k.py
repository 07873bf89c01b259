# The frozen backbone alone.
_base_ = 'mask2former_dinov3_b_ade20k.py'
model = dict(backbone=dict(prompts=dict(num_tokens=0)))
custom_hooks = []
