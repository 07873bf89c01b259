# RetinaNet on timm's Swin-T with timm's weights. Of timm's ways to take features off a model, 'getter' gives maps
# (B, C, H, W). The default for Swin gives (B, H, W, C), which no neck reads.
_base_ = 'mmdet::retinanet/retinanet_r50_fpn_1x_coco.py'
backbone = dict(
    _delete_=True, type='mmprovpt.PromptedTIMMBackbone', prompts=dict(type='StaticPrompts', num_tokens=10),
    model_name='swin_tiny_patch4_window7_224', pretrained=True, features_only=True, feature_cls='getter',
    out_indices=(1, 2, 3), strict_img_size=False)
model = dict(backbone=backbone, neck=dict(in_channels=[192, 384, 768], start_level=0))
optim_wrapper = dict(type='mmprovpt.FiniteOptimWrapper')
default_hooks = dict(seed=dict(type='mmprovpt.IterationSeedHook'))
custom_hooks = [dict(type='mmprovpt.PromptRelocationHook', interval=1000, by_epoch=False)]
