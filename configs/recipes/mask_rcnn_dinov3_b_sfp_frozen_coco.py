# The frozen backbone alone.
_base_ = 'mask_rcnn_dinov3_b_sfp_coco.py'
model = dict(backbone=dict(prompts=dict(num_tokens=0)))
custom_hooks = []
