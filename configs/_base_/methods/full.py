# Full fine-tuning: as VPT, but mmpretrain's own backbone, of which nothing is frozen. Optimizer and weight decay are
# those of VPT's code; of its learning rates, 0.0001 to 0.005 at 256 images, one from the middle.
_base_ = 'vpt.py'
optim_wrapper = dict(optimizer=dict(_delete_=True, type='AdamW', lr=0.0005 * 64 / 256, weight_decay=0.0001))
# All weights are trained, so nothing can be left out.
default_hooks = dict(checkpoint=dict(type='CheckpointHook'))
