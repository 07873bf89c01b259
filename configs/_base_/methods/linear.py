# Linear probing: as VPT, but the backbone (mmpretrain's own, without prompts) is frozen and the head alone is trained.
_base_ = 'vpt.py'
default_hooks = dict(checkpoint=dict(type='CheckpointHook'))
