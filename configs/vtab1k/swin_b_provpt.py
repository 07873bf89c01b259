# PRO-VPT, VTAB-1k, the task in TASK, on Swin-B. The papers do not say how many prompts
# (PRO-VPT, Table 4, CIFAR-100: 82.67).
_base_ = ['../_base_/backbones/swin_b_in21k.py', '../_base_/tasks/vtab1k.py', '../_base_/methods/provpt.py']
model = dict(
    backbone=dict(prompts=dict(type='StaticPrompts', num_tokens=10)),
    head=dict(num_classes=_base_.num_classes))
work_dir = 'work_dirs/{{ fileBasenameNoExtension }}_' + _base_.task
