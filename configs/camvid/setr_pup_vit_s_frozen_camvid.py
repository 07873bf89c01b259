# The frozen backbone alone: as its VPT twin, without prompts.
# Expected: 39.2 mIoU, 39.1 to 39.4 over three seeds ("frozen at 0.01", docs/evidence/study.md).
_base_ = 'setr_pup_vit_s_vpt_camvid.py'

model = dict(backbone=dict(prompts=dict(num_tokens=0)))
