# Linear probing, FGVC: CUB-200-2011.
_base_ = 'vit_b_vpt_cub.py'
model = dict(backbone=dict(prompts=dict(num_tokens=0)))
