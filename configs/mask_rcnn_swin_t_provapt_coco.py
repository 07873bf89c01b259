# PRO-VAPT: as mask_rcnn_swin_t_provpt_coco.py, with prompts that depend on the input (docs/vapt.md).
_base_ = 'mask_rcnn_swin_t_provpt_coco.py'

model = dict(backbone=dict(prompts=dict(type='AdaptivePrompts')))
