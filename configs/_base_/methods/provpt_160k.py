# Prompts relocate after every 1600 of 160,000 iterations: 100 times, as in the paper's classification (100 epochs).
custom_hooks = [
    dict(
        type='mmprovpt.PromptRelocationHook',
        interval=1600,
        by_epoch=False,
        pruner=dict(type='IdlenessPruner', criterion='taylor'),
        allocator=dict(type='PPOAllocator'))
]
