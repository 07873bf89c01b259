# VPT-Deep: as mask_rcnn_swin_t_vpt_coco.py, 3x, with images of several scales and crops.
_base_ = 'mask_rcnn_swin_t_full_ms_crop_3x_coco.py'

model = dict(
    backbone=dict(
        type='mmprovpt.PromptedSwinTransformer',
        prompts=dict(type='StaticPrompts', num_tokens=10, dropout=0.1)))
