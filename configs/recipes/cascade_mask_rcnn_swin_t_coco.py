# Cascade Mask R-CNN: a config of a ResNet gets MMDetection's Swin-T, pre-trained on ImageNet-1k.
_base_ = 'mmdet::cascade_rcnn/cascade-mask-rcnn_r50_fpn_1x_coco.py'
weights = 'https://github.com/SwinTransformer/storage/releases/download/v1.0.0/swin_tiny_patch4_window7_224.pth'
backbone = dict(
    _delete_=True, type='mmprovpt.PromptedSwinTransformer', prompts=dict(type='StaticPrompts', num_tokens=10),
    convert_weights=True, init_cfg=dict(type='Pretrained', checkpoint=weights))
model = dict(backbone=backbone, neck=dict(in_channels=[96, 192, 384, 768]))
# As in MMDetection's configs of Swin.
optim_wrapper = dict(
    type='mmprovpt.FiniteOptimWrapper', optimizer=dict(_delete_=True, type='AdamW', lr=0.0001, weight_decay=0.05))
default_hooks = dict(seed=dict(type='mmprovpt.IterationSeedHook'))
custom_hooks = [dict(type='mmprovpt.PromptRelocationHook', interval=1000, by_epoch=False)]
