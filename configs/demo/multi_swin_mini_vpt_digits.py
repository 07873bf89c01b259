# Digits detected, segmented and classified by one frozen backbone, each through prompts of its own, in minutes on two
# CPU cores. The tasks are those of the other demos; the backbone is the narrow Swin of two of them, MMPretrain's, whose
# outputs all three codebases read.
_base_ = []

# Below `_base_`: MMEngine takes a file that begins with an import for a config of its lazy kind.
from mmprovpt.tasks import join_tasks  # noqa: E402

several = join_tasks(
    dict(
        detect='{{ fileDirname }}/mask_rcnn_swin_mini_vpt_digits.py',
        segment='{{ fileDirname }}/setr_pup_vit_mini_vpt_digits.py',
        classify='{{ fileDirname }}/swin_mini_vpt_digits.py'),
    backbone=dict(
        type='SwinTransformer',
        _scope_='mmpretrain',
        arch=dict(embed_dims=24, depths=[2, 2, 6, 2], num_heads=[3, 6, 12, 24]),
        img_size=(128, 160),
        out_indices=(0, 1, 2, 3),
        pad_small_map=True,  # digits of 56 px have last maps that are smaller than a window
        init_cfg=dict(
            type='Pretrained', checkpoint='{{ fileDirname }}/swin_mini_digits.pth', prefix='backbone.')))

# SETR's head is for a ViT's maps, which are all of one size.
several['model']['tasks']['segment']['decode_head'] = dict(
    type='UPerHead',
    in_channels=[24, 48, 96, 192],
    in_index=[0, 1, 2, 3],
    pool_scales=(1, 2, 3, 6),
    channels=64,
    num_classes=13,
    norm_cfg=dict(type='SyncBN'),
    loss_decode=several['model']['tasks']['segment']['decode_head']['loss_decode'])

default_scope = several['default_scope']
model = several['model']
train_dataloader = {
    task: dict(loader, sampler=dict(type='InfiniteSampler', shuffle=True))
    for task, loader in several['train_dataloader'].items()
}
val_dataloader = several['val_dataloader']
val_evaluator = several['val_evaluator']
val_cfg = several['val_cfg']
test_dataloader = several['test_dataloader']
test_evaluator = several['test_evaluator']
test_cfg = several['test_cfg']
del several

# Schedule: 192 iterations of each task, in turns. Each task's parameters have steps of their own, for the backbone is
# frozen, and what an iteration does not read has no gradient. So rates are those that suit a task by itself.
randomness = dict(seed=0)
max_iters = 3 * 192
train_cfg = dict(type='mmprovpt.MultiTaskIterTrainLoop', max_iters=max_iters, val_interval=max_iters)
optim_wrapper = dict(
    type='mmprovpt.FiniteOptimWrapper',
    optimizer=dict(type='AdamW', lr=0.001, weight_decay=0.01),
    clip_grad=dict(max_norm=5.),
    paramwise_cfg=dict(custom_keys={
        'tasks.detect': dict(lr_mult=0.5),
        'tasks.segment': dict(lr_mult=4.),
        'classify': dict(lr_mult=10.),  # its prompts, too: with 1 it had 61 % instead of 72
    }))
param_scheduler = [
    dict(type='LinearLR', start_factor=0.01, by_epoch=False, begin=0, end=60),
    dict(type='PolyLR', eta_min=1e-5, power=0.9, begin=60, end=max_iters, by_epoch=False)
]
default_hooks = dict(
    checkpoint=dict(type='mmprovpt.PromptCheckpointHook', by_epoch=False, interval=max_iters),
    seed=dict(type='mmprovpt.IterationSeedHook'),
    logger=dict(type='LoggerHook', interval=24))
log_processor = dict(by_epoch=False, window_size=8)
