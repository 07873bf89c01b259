# Linear probing, miniature VTAB, the task in TASK.
# Expected: 65.8 %, 65.6 to 65.9 over five seeds ("linear at 0.02, 0.0001", docs/evidence/study.md).
_base_ = 'vpt.py'
model = dict(backbone=dict(prompts=dict(num_tokens=0)))
# The best of the study for the last iterate (docs/evidence/study.md).
optim_wrapper = dict(optimizer=dict(lr=0.02, weight_decay=0.0001), clip_grad=None)
work_dir = 'work_dirs/{{ fileBasenameNoExtension }}_' + _base_.task
