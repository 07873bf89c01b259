# Adding-based adjustment (001, App. C): half of VPT's prompts to begin with, the others come one after the other.
prompts = dict(scale=0.5, spare=True)
relocation = dict(
    pruner=dict(type='SparePruner', criterion='taylor'),
    allocator=dict(type='PPOAllocator'))
