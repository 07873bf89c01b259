# The frozen backbone alone: as its VPT twin, without prompts.
# Expected: 48.0 mIoU, 47.3 to 49.4 over three seeds ("frozen" with UPerNet, docs/evidence/study.md).
_base_ = 'upernet_vit_s_vpt_camvid.py'

model = dict(backbone=dict(prompts=dict(num_tokens=0)))
