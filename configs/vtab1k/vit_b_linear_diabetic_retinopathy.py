# Linear probing, VTAB-1k: Retinopathy.
_base_ = 'vit_b_vpt_diabetic_retinopathy.py'
model = dict(backbone=dict(prompts=dict(num_tokens=0)))
