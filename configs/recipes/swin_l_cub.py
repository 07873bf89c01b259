# Classification: MMPretrain's config of a Swin-L, pre-trained on ImageNet-21k, on CUB-200-2011.
_base_ = 'mmpretrain::swin_transformer/swin-large_8xb8_cub-384px.py'
prompts = dict(type='StaticPrompts', num_tokens=10)
model = dict(backbone=dict(type='mmprovpt.PromptedSwinTransformer', prompts=prompts))
# 5e-6 there: it is for fine-tuning the whole backbone.
optim_wrapper = dict(type='mmprovpt.FiniteOptimWrapper', optimizer=dict(lr=0.001))
default_hooks = dict(seed=dict(type='mmprovpt.IterationSeedHook'))
custom_hooks = [dict(type='mmprovpt.PromptRelocationHook', interval=1)]
