# (A) Pruning, from what VPT has: half of it is left, so that what is trained equals VPT. The paper prunes 10 to 90 %.
relocation = dict(
    pruner=dict(type='ShrinkingPruner', keep=0.5, criterion='taylor'),
    allocator=dict(type='RetireAllocator'))
