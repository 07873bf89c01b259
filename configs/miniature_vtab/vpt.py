# VPT-Deep, miniature VTAB, the task in TASK. Ten epochs, for CPUs.
# Expected: 82.0 %, 81.5 to 82.4 over five seeds ("VPT-Deep at 0.3, 0.01", docs/evidence/study.md): 2.3 more than as in
# its paper, tuned alike.
_base_ = ['../_base_/backbones/vit_s14_dinov2_42.py', '../_base_/tasks/miniature_vtab.py', '../_base_/methods/vpt.py']
model = dict(
    backbone=dict(prompts=dict(type='StaticPrompts', num_tokens=5)),
    head=dict(num_classes=_base_.num_classes))
# The best of the study for prompts that stay and for prompts that move (docs/evidence/study.md).
optim_wrapper = dict(optimizer=dict(lr=0.3, weight_decay=0.01), clip_grad=dict(max_norm=0.25))
train_cfg = dict(max_epochs=10, val_interval=10)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.001, by_epoch=True, begin=0, end=1, convert_to_iter_based=True),
    dict(type='CosineAnnealingLR', by_epoch=True, begin=1, end=10, convert_to_iter_based=True)
]
work_dir = 'work_dirs/{{ fileBasenameNoExtension }}_' + _base_.task
