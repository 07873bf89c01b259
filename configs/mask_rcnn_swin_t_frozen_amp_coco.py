# The frozen backbone alone: as its VPT twin, without prompts.
_base_ = 'mask_rcnn_swin_t_vpt_amp_coco.py'

model = dict(backbone=dict(prompts=dict(num_tokens=0)))
