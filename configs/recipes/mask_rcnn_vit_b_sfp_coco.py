# Mask R-CNN on a plain ViT-B, pre-trained by MAE, with the simple feature pyramid of ViTDet: all levels come from the
# last map. Unlike there, all blocks attend globally.
_base_ = 'mmdet::mask_rcnn/mask-rcnn_r50_fpn_1x_coco.py'
backbone = dict(
    _delete_=True, type='mmprovpt.PromptedVisionTransformer', arch='base', out_type='featmap',
    prompts=dict(type='StaticPrompts', num_tokens=10),
    init_cfg=dict(type='Pretrained', checkpoint='checkpoints/vit_b16_mae.pth', prefix='backbone.'))
neck = dict(type='mmprovpt.SimpleFeaturePyramid', in_channels=768)
model = dict(backbone=backbone, neck=dict(neck, _delete_=True))
optim_wrapper = dict(
    type='mmprovpt.FiniteOptimWrapper', optimizer=dict(_delete_=True, type='AdamW', lr=0.0001, weight_decay=0.05))
default_hooks = dict(seed=dict(type='mmprovpt.IterationSeedHook'))
custom_hooks = [dict(type='mmprovpt.PromptRelocationHook', interval=1000, by_epoch=False)]
