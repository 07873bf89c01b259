# PRO-VPT as its authors' code has it, miniature VTAB, the task in TASK. Ten epochs, for CPUs.
# Expected: 73.3 %, 70.9 to 76.8 over five seeds ("PRO-VPT, authors at 0.3, 0.0001", docs/evidence/study.md).
_base_ = [
    '../_base_/backbones/vit_s14_dinov2_42.py', '../_base_/tasks/miniature_vtab.py',
    '../_base_/methods/provpt_authors.py'
]
model = dict(
    backbone=dict(prompts=dict(type='StaticPrompts', num_tokens=5)),
    head=dict(num_classes=_base_.num_classes))
optim_wrapper = dict(optimizer=dict(lr=0.3))
train_cfg = dict(max_epochs=10, val_interval=10)
work_dir = 'work_dirs/{{ fileBasenameNoExtension }}_' + _base_.task
