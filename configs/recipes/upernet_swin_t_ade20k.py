# UPerNet: MMSegmentation's config of a Swin-T. Why the path is found so: docs/how-to/recipes.md.
_base_ = (__import__('mmengine').utils.get_installed_path('mmseg') +
          '/.mim/configs/swin/swin-tiny-patch4-window7-in1k-pre_upernet_8xb2-160k_ade20k-512x512.py')
prompts = dict(type='StaticPrompts', num_tokens=10)
model = dict(backbone=dict(type='mmprovpt.PromptedSwinTransformer', prompts=prompts))
optim_wrapper = dict(type='mmprovpt.FiniteOptimWrapper')
default_hooks = dict(seed=dict(type='mmprovpt.IterationSeedHook'))
custom_hooks = [dict(type='mmprovpt.PromptRelocationHook', interval=1600, by_epoch=False)]
