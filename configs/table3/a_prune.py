# (A) Pruning, from what VPT has: half of it is left, so that what is trained equals VPT. The paper prunes 10 to 90 %.
custom_imports = dict(imports=['benchmarks.table3.ablations'])
relocation = dict(
    pruner=dict(type='ShrinkingPruner', keep=0.5, criterion='taylor'),
    allocator=dict(type='RetireAllocator'))
