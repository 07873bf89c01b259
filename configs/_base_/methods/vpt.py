# VPT-Deep (PRO-VPT, Table i): SGD, 100 epochs, 10 of warm-up, then cosine.
# Expected: 79.7 %, 78.7 to 80.1 over five seeds ("VPT-Deep, no clip at 0.01, 0.0001", docs/evidence/study.md).
default_scope = 'mmpretrain'

# lr = base * batch size / 256. Which base and weight decay won the grid of a task is not published; tools/sweep.py
# finds out. Until then base 2.5 and weight decay 0.0001 (why: docs/how-to/classification.md).
optim_wrapper = dict(
    type='mmprovpt.FiniteOptimWrapper',  # leaves out steps that are not finite; else MMEngine's own
    optimizer=dict(type='SGD', lr=2.5 * 64 / 256, momentum=0.9, weight_decay=0.0001))
auto_scale_lr = dict(base_batch_size=64)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.001, by_epoch=True, begin=0, end=10, convert_to_iter_based=True),
    dict(type='CosineAnnealingLR', by_epoch=True, begin=10, end=100, convert_to_iter_based=True)
]
# Only the end is evaluated: most test sets are many times larger than the 1000 training images.
train_cfg = dict(by_epoch=True, max_epochs=100, val_interval=100)
val_cfg = dict()
test_cfg = dict()
val_evaluator = dict(type='Accuracy', topk=1)
test_evaluator = val_evaluator

default_hooks = dict(
    # The frozen weights stay out of checkpoints (docs/how-to/small_checkpoints.md).
    checkpoint=dict(type='mmprovpt.PromptCheckpointHook', interval=10, max_keep_ckpts=1),
    seed=dict(type='mmprovpt.IterationSeedHook'),  # resumed, or beside a twin: the same images, equally augmented
    logger=dict(type='LoggerHook'),  # MMEngine's own; named, so that --cfg-options can set its interval
    visualization=dict(type='VisualizationHook', interval=1, enable=False))  # tools/test.py --show-dir
visualizer = dict(type='UniversalVisualizer', vis_backends=[dict(type='LocalVisBackend')])
randomness = dict(seed=0)
