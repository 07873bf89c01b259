# VPT-Deep: as mask_rcnn_swin_t_vpt_coco.py, 3x, with images of several scales and crops.
_base_ = 'mmdet::swin/mask-rcnn_swin-t-p4-w7_fpn_ms-crop-3x_coco.py'

model = dict(
    backbone=dict(
        type='mmprovpt.PromptedSwinTransformer',
        prompts=dict(type='StaticPrompts', num_tokens=10, dropout=0.1)))
default_hooks = dict(classes=dict(type='mmprovpt.ClassCheckHook'))
