# PRO-VPT: as its VPT twin, and a prompt relocates after each epoch.
# Expected: 48.0 mIoU, 47.7 to 48.2 over three seeds ("PRO-VPT" with Mask2Former, docs/evidence/study.md).
_base_ = ['mask2former_vit_s_vpt_camvid.py', '../_base_/methods/relocation.py']

custom_hooks = [dict(_base_.custom_hooks[0], interval=46, by_epoch=False)]
