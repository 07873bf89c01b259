# The frozen backbone alone: as its VPT twin, without prompts.
_base_ = 'mask2former_vit_s_vpt_camvid.py'

model = dict(backbone=dict(prompts=dict(num_tokens=0)))
