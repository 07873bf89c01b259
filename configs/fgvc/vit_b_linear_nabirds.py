# Linear probing, FGVC: NABirds.
_base_ = 'vit_b_vpt_nabirds.py'
model = dict(backbone=dict(prompts=dict(num_tokens=0)))
