# PRO-VPT as the study supports it: VPT's schedule, the authors' clip, and prompts that keep their values.
# Expected: 81.1 %, 80.7 to 81.7 over five seeds ("PRO-VPT, cosine at 0.3, 0.01", docs/evidence/study.md).
# Prompts that stay had more at that setting (configs/miniature_vtab/vpt.py): compare with custom_hooks=[], which
# changes nothing else. The papers' own settings: provpt_paper.py, provpt_authors.py.
_base_ = ['vpt.py', 'relocation.py']

optim_wrapper = dict(clip_grad=dict(max_norm=0.25))
