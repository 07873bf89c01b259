# The frozen backbone alone: as its VPT twin, without prompts.
_base_ = 'setr_mla_vit_b_vpt_ade20k.py'

model = dict(backbone=dict(prompts=dict(num_tokens=0)))
