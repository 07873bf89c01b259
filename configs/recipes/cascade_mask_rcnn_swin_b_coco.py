# Cascade Mask R-CNN on Swin-B, pre-trained on ImageNet-22k, 36 epochs with images of several sizes.
_base_ = 'mmdet::cascade_rcnn/cascade-mask-rcnn_r50_fpn_ms-3x_coco.py'
weights = 'https://github.com/SwinTransformer/storage/releases/download/v1.0.0/swin_base_patch4_window7_224_22k.pth'
backbone = dict(
    _delete_=True, type='mmprovpt.PromptedSwinTransformer', prompts=dict(type='StaticPrompts', num_tokens=10),
    embed_dims=128, depths=[2, 2, 18, 2], num_heads=[4, 8, 16, 32], convert_weights=True,
    init_cfg=dict(type='Pretrained', checkpoint=weights))
model = dict(backbone=backbone, neck=dict(in_channels=[128, 256, 512, 1024]))
optim_wrapper = dict(
    type='mmprovpt.FiniteOptimWrapper', optimizer=dict(_delete_=True, type='AdamW', lr=0.0001, weight_decay=0.05))
default_hooks = dict(seed=dict(type='mmprovpt.IterationSeedHook'))
custom_hooks = [dict(type='mmprovpt.PromptRelocationHook', interval=3000, by_epoch=False)]
