# (G) The idlest prompt; PPO: PRO-VPT.
relocation = dict(
    pruner=dict(type='IdlenessPruner', criterion='taylor'),
    allocator=dict(type='PPOAllocator'))
