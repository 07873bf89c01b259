# Linear probing, VTAB-1k: Pets.
_base_ = 'vit_b_vpt_oxford_iiit_pet.py'
model = dict(backbone=dict(prompts=dict(num_tokens=0)))
