# The frozen backbone alone: as its VPT twin, without prompts.
_base_ = 'setr_naive_vit_l_vpt_ade20k.py'

model = dict(backbone=dict(prompts=dict(num_tokens=0)))
