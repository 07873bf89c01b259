# Linear probing, VTAB-1k: KITTI-Dist.
_base_ = 'vit_b_vpt_kitti.py'
model = dict(backbone=dict(prompts=dict(num_tokens=0)))
