# (F) The idlest prompt; Thompson sampling.
relocation = dict(
    pruner=dict(type='IdlenessPruner', criterion='taylor'),
    allocator=dict(type='ThompsonAllocator'))
