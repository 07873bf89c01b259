# The hook that moves prompts, named here alone. Who wants another period replaces the list:
# custom_hooks = [dict(_base_.custom_hooks[0], interval=1000, by_epoch=False)]
custom_hooks = [
    dict(
        type='mmprovpt.PromptRelocationHook',
        interval=1,
        by_epoch=True,
        pruner=dict(type='IdlenessPruner', criterion='taylor'),
        allocator=dict(type='PPOAllocator'))
]
