# Mask2Former, instance segmentation: MMDetection's config of a Swin-T.
_base_ = 'mmdet::mask2former/mask2former_swin-t-p4-w7-224_8xb2-lsj-50e_coco.py'
prompts = dict(type='StaticPrompts', num_tokens=10)
model = dict(backbone=dict(type='mmprovpt.PromptedSwinTransformer', prompts=prompts))
# Pre-trained weights have a tenth of the learning rate there. Prompts are new.
optim_wrapper = dict(
    type='mmprovpt.FiniteOptimWrapper', paramwise_cfg=dict(custom_keys={'backbone.prompts': dict(lr_mult=1.0)}))
default_hooks = dict(seed=dict(type='mmprovpt.IterationSeedHook'))
custom_hooks = [dict(type='mmprovpt.PromptRelocationHook', interval=3700, by_epoch=False)]
