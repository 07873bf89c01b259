# PRO-VAPT, miniature VTAB: location.
_base_ = 'provpt_location.py'
# The maps have 3 x 3 patches.
model = dict(backbone=dict(prompts=dict(type='AdaptivePrompts', grid_size=3)))
