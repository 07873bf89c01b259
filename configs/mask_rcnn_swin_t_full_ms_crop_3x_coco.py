# Full fine-tuning: MMDetection's config, with checks. Its twins are VPT, PRO-VPT and the frozen backbone alone.
_base_ = 'mmdet::swin/mask-rcnn_swin-t-p4-w7_fpn_ms-crop-3x_coco.py'

optim_wrapper = dict(type='mmprovpt.FiniteOptimWrapper')
default_hooks = dict(
    classes=dict(type='mmprovpt.ClassCheckHook'), seed=dict(type='mmprovpt.IterationSeedHook'))
