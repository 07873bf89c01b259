# PRO-VPT: as VPT, but prompts relocate after each epoch, and the learning rate stays (001, § 4.1 and Tab. i).
_base_ = 'vpt.py'

param_scheduler = []
custom_hooks = [
    dict(
        type='mmprovpt.PromptRelocationHook',
        interval=1,
        by_epoch=True,
        pruner=dict(type='IdlenessPruner', criterion='taylor'),
        allocator=dict(type='PPOAllocator'))
]
