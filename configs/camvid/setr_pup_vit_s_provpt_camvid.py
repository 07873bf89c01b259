# PRO-VPT: as its VPT twin, and a prompt relocates after each epoch.
# Expected: 43.6 mIoU, 43.1 to 44.1 over three seeds ("PRO-VPT, paper at 0.01", docs/evidence/study.md).
_base_ = ['setr_pup_vit_s_vpt_camvid.py', '../_base_/methods/relocation.py']

custom_hooks = [dict(_base_.custom_hooks[0], interval=46, by_epoch=False)]
