# RetinaNet: MMDetection's config of a Swin-T.
_base_ = 'mmdet::swin/retinanet_swin-t-p4-w7_fpn_1x_coco.py'
prompts = dict(type='StaticPrompts', num_tokens=10)
model = dict(backbone=dict(type='mmprovpt.PromptedSwinTransformer', prompts=prompts))
optim_wrapper = dict(type='mmprovpt.FiniteOptimWrapper')
default_hooks = dict(seed=dict(type='mmprovpt.IterationSeedHook'))
custom_hooks = [dict(type='mmprovpt.PromptRelocationHook', interval=1000, by_epoch=False)]
