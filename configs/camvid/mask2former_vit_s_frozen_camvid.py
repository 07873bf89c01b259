# The frozen backbone alone: as its VPT twin, without prompts.
# Expected: 42.9 mIoU, 42.2 to 43.5 over three seeds ("frozen" with Mask2Former, docs/evidence/study.md).
_base_ = 'mask2former_vit_s_vpt_camvid.py'

model = dict(backbone=dict(prompts=dict(num_tokens=0)))
