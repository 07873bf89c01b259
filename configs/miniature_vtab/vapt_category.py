# VAPT, miniature VTAB: category.
_base_ = 'vpt_category.py'
# The maps have 3 x 3 patches.
model = dict(backbone=dict(prompts=dict(type='AdaptivePrompts', grid_size=3)))
