# Mask2Former, semantic, on DINOv3 ViT-B/16: MMSegmentation's config of a ResNet with another backbone, whose weights
# timm fetches by name (their license is Meta's DINOv3 License), and ViTDet's pyramid of its last map.
_base_ = (__import__('mmengine').utils.get_installed_path('mmseg') +
          '/.mim/configs/mask2former/mask2former_r50_8xb2-160k_ade20k-512x512.py')
backbone = dict(
    _delete_=True, type='mmprovpt.PromptedTIMMBackbone', prompts=dict(type='StaticPrompts', num_tokens=10),
    model_name='vit_base_patch16_dinov3', pretrained=True, features_only=True, out_indices=(11, ))
neck = dict(type='mmprovpt.SimpleFeaturePyramid', in_channels=768, num_outs=4)
model = dict(backbone=backbone, neck=neck, decode_head=dict(in_channels=[256] * 4))
optim_wrapper = dict(
    type='mmprovpt.FiniteOptimWrapper', paramwise_cfg=dict(custom_keys={'backbone.prompts': dict(lr_mult=1.0)}))
default_hooks = dict(seed=dict(type='mmprovpt.IterationSeedHook'))
custom_hooks = [dict(type='mmprovpt.PromptRelocationHook', interval=1600, by_epoch=False)]
