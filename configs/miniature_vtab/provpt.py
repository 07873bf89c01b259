# PRO-VPT, miniature VTAB, the task in TASK. Ten epochs, for CPUs.
# Expected: 81.1 %, 80.7 to 81.7 over five seeds ("PRO-VPT, cosine at 0.3, 0.01", docs/evidence/study.md).
_base_ = ['vpt.py', '../_base_/methods/relocation.py']
work_dir = 'work_dirs/{{ fileBasenameNoExtension }}_' + _base_.task
