# The frozen backbone alone.
_base_ = 'cascade_mask_rcnn_swin_b_coco.py'
model = dict(backbone=dict(prompts=dict(num_tokens=0)))
custom_hooks = []
