# PRO-VPT: as its VPT twin, and a prompt relocates after each epoch.
# Expected: 49.9 mIoU, 49.8 to 50.0 over three seeds ("PRO-VPT" with UPerNet, docs/evidence/study.md).
_base_ = ['upernet_vit_s_vpt_camvid.py', '../_base_/methods/relocation.py']

custom_hooks = [dict(_base_.custom_hooks[0], interval=46, by_epoch=False)]
