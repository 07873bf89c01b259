# UPerNet on DINOv3 ViT-B/16: MMSegmentation's config of a BEiT-B with another backbone, whose weights timm fetches by
# name (their license is Meta's DINOv3 License). Why the path is found so: docs/how-to/recipes.md.
_base_ = (__import__('mmengine').utils.get_installed_path('mmseg') +
          '/.mim/configs/beit/beit-base_upernet_8xb2-160k_ade20k-640x640.py')
backbone = dict(
    _delete_=True, type='mmprovpt.PromptedTIMMBackbone', prompts=dict(type='StaticPrompts', num_tokens=10),
    model_name='vit_base_patch16_dinov3', pretrained=True, features_only=True, out_indices=(2, 5, 8, 11))
model = dict(pretrained=None, backbone=backbone)
optim_wrapper = dict(
    _delete_=True, type='mmprovpt.FiniteOptimWrapper', optimizer=dict(type='AdamW', lr=0.0001, weight_decay=0.05))
default_hooks = dict(seed=dict(type='mmprovpt.IterationSeedHook'))
custom_hooks = [dict(type='mmprovpt.PromptRelocationHook', interval=1600, by_epoch=False)]
