# VPT-Shallow: as mask_rcnn_swin_t_vpt_coco.py, with prompts in the first block alone, whose outputs are kept.
_base_ = 'mask_rcnn_swin_t_vpt_coco.py'

model = dict(backbone=dict(prompts=dict(type='ShallowPrompts')))
