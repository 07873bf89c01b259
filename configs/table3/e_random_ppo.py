# (E) A random prompt; PPO.
relocation = dict(
    pruner=dict(type='RandomPruner', criterion='taylor'),
    allocator=dict(type='PPOAllocator'))
