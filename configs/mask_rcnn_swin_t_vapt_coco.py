# VAPT: as mask_rcnn_swin_t_vpt_coco.py, with prompts that depend on the input (docs/method/vapt.md).
_base_ = 'mask_rcnn_swin_t_vpt_coco.py'

model = dict(backbone=dict(prompts=dict(type='AdaptivePrompts')))
