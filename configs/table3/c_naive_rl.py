# (C) Naive RL: PPO over all pairs (from, to).
relocation = dict(
    pruner=dict(type='IdlenessPruner', criterion='taylor'),
    allocator=dict(type='JointPPOAllocator'))
