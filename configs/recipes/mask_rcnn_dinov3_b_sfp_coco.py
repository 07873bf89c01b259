# Mask R-CNN on DINOv3 ViT-B/16, whose weights timm fetches by name (their license is Meta's DINOv3 License), with the
# simple feature pyramid of ViTDet. Unlike there, all blocks attend globally.
_base_ = 'mmdet::mask_rcnn/mask-rcnn_r50_fpn_1x_coco.py'
backbone = dict(
    _delete_=True, type='mmprovpt.PromptedTIMMBackbone', prompts=dict(type='StaticPrompts', num_tokens=10),
    model_name='vit_base_patch16_dinov3', pretrained=True, features_only=True, out_indices=(11, ))
neck = dict(type='mmprovpt.SimpleFeaturePyramid', in_channels=768)
model = dict(backbone=backbone, neck=dict(neck, _delete_=True))
optim_wrapper = dict(
    type='mmprovpt.FiniteOptimWrapper', optimizer=dict(_delete_=True, type='AdamW', lr=0.0001, weight_decay=0.05))
default_hooks = dict(seed=dict(type='mmprovpt.IterationSeedHook'))
custom_hooks = [dict(type='mmprovpt.PromptRelocationHook', interval=1000, by_epoch=False)]
