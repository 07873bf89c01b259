# PRO-VAPT: as mask_rcnn_swin_t_provpt_coco.py, with prompts that depend on the input (docs/method/vapt.md).
_base_ = 'mask_rcnn_swin_t_provpt_coco.py'

model = dict(backbone=dict(prompts=dict(type='AdaptivePrompts')))
# The paper's criterion compares rows of unlike kinds with one another (docs/method/vapt.md).
custom_hooks = [dict(_base_.custom_hooks[0], pruner=dict(type='IdlenessPruner', criterion='gate_fisher'))]
