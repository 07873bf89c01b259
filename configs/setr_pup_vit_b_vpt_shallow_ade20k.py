# VPT-Shallow: as setr_pup_vit_b_vpt_ade20k.py, with prompts in the first block alone, whose outputs are kept.
_base_ = 'setr_pup_vit_b_vpt_ade20k.py'

model = dict(backbone=dict(prompts=dict(type='ShallowPrompts')))
