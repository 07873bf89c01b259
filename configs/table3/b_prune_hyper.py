# (B) Pruning, from twice of what VPT has, so that what is left equals VPT. The paper prunes 10 to 90 %.
custom_imports = dict(imports=['benchmarks.table3.ablations'])
prompts = dict(scale=2)
relocation = dict(
    pruner=dict(type='ShrinkingPruner', keep=0.5, criterion='taylor'),
    allocator=dict(type='RetireAllocator'))
