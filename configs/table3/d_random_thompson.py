# (D) A random prompt; Thompson sampling.
relocation = dict(
    pruner=dict(type='RandomPruner', criterion='taylor'),
    allocator=dict(type='ThompsonAllocator'))
