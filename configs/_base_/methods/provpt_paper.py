# PRO-VPT as the paper says: as VPT, but prompts relocate after each epoch, and the learning rate stays (PRO-VPT,
# Sec. 4.1 and Table i).
# Expected: 75.0 %, 73.9 to 77.0 over five seeds ("PRO-VPT, paper at 0.01, 0.01", docs/evidence/study.md).
_base_ = ['vpt.py', 'relocation.py']

param_scheduler = []
