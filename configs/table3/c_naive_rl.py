# (C) Naive RL: PPO over all pairs (from, to).
custom_imports = dict(imports=['benchmarks.table3.ablations'])
relocation = dict(
    pruner=dict(type='IdlenessPruner', criterion='taylor'),
    allocator=dict(type='JointPPOAllocator'))
