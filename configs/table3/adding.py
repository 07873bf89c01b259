# Adding-based adjustment (PRO-VPT, App. C): half of VPT's prompts to begin with, the others come one after the other.
custom_imports = dict(imports=['benchmarks.table3.ablations'])
prompts = dict(scale=0.5, spare=True)
relocation = dict(
    pruner=dict(type='SparePruner', criterion='taylor'),
    allocator=dict(type='PPOAllocator'))
