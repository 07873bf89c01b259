# UPerNet: MMSegmentation's config of a ViT-B. Why the path is found so: docs/how-to/recipes.md.
_base_ = (__import__('mmengine').utils.get_installed_path('mmseg') +
          '/.mim/configs/vit/vit_vit-b16_mln_upernet_8xb2-160k_ade20k-512x512.py')
# MMSegmentation drops the bias of the patch embedding, but the weights were trained with it.
backbone = dict(
    type='mmprovpt.PromptedVisionTransformer', prompts=dict(type='StaticPrompts', num_tokens=10), patch_bias=True)
model = dict(backbone=backbone)
optim_wrapper = dict(type='mmprovpt.FiniteOptimWrapper')
default_hooks = dict(seed=dict(type='mmprovpt.IterationSeedHook'))
custom_hooks = [dict(type='mmprovpt.PromptRelocationHook', interval=1600, by_epoch=False)]
