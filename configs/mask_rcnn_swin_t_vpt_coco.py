# VPT-Deep: Mask R-CNN on COCO, Swin-T pre-trained on ImageNet-1k and frozen, 1x
# (PRO-VPT, Table vii: 33.8 AP^b, 32.5 AP^m).
_base_ = 'mask_rcnn_swin_t_full_coco.py'

# The papers do not give the number of prompts for dense tasks.
model = dict(
    backbone=dict(
        type='mmprovpt.PromptedSwinTransformer',
        prompts=dict(type='StaticPrompts', num_tokens=10, dropout=0.1)))
