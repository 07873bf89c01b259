# VPT-Deep: SETR-PUP on CamVid at 224 x 168 px, ViT-S/14 pre-trained by DINOv2 and frozen, 10 epochs; for CPUs. The
# weights: tools/model_converters/to_mmpretrain.py IN checkpoints/vit_s14_dinov2.pth (docs/how-to/weights.md).
# Expected: 44.0 mIoU, 43.6 to 44.4 over three seeds ("VPT-Deep at 0.01", docs/evidence/study.md).
_base_ = [
    __import__('mmengine').utils.get_installed_path('mmseg') + '/.mim/configs/_base_/models/setr_pup.py',
    '../_base_/datasets/camvid_240.py'
]
default_scope = 'mmseg'
model = dict(
    data_preprocessor=dict(
        mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375], size=(168, 224), seg_pad_val=11),
    pretrained=None,
    backbone=dict(
        _delete_=True,
        _scope_='mmpretrain',
        type='mmprovpt.PromptedVisionTransformer',
        arch='dinov2-small',
        img_size=(168, 224),
        patch_size=14,
        layer_scale_init_value=1e-5,
        out_indices=[2, 5, 8, 11],
        out_type='featmap',
        final_norm=False,
        prompts=dict(type='StaticPrompts', num_tokens=10, dropout=0.1),
        init_cfg=dict(type='Pretrained', checkpoint='checkpoints/vit_s14_dinov2.pth', prefix='backbone.')),
    # As wide as makes it a third of the work of the backbone.
    decode_head=dict(
        in_channels=384, channels=64, num_classes=11, ignore_index=11, norm_cfg=dict(type='BN', requires_grad=True)),
    auxiliary_head=None,
    test_cfg=dict(_delete_=True, mode='whole'))

max_iters = 460  # ten epochs
train_cfg = dict(type='IterBasedTrainLoop', max_iters=max_iters, val_interval=max_iters)
val_cfg = dict(type='ValLoop')
test_cfg = dict(type='TestLoop')
optim_wrapper = dict(
    type='mmprovpt.FiniteOptimWrapper',
    optimizer=dict(type='AdamW', lr=0.01, weight_decay=0.01),  # the best of the study, the largest tried
    clip_grad=dict(max_norm=5.))
param_scheduler = [
    dict(type='LinearLR', start_factor=0.01, by_epoch=False, begin=0, end=46),
    dict(type='PolyLR', eta_min=1e-6, power=0.9, begin=46, end=max_iters, by_epoch=False)
]
default_hooks = dict(
    classes=dict(type='mmprovpt.ClassCheckHook'),
    seed=dict(type='mmprovpt.IterationSeedHook'),
    timer=dict(type='IterTimerHook'),
    logger=dict(type='LoggerHook', interval=46, log_metric_by_epoch=False),
    param_scheduler=dict(type='ParamSchedulerHook'),
    checkpoint=dict(type='mmprovpt.PromptCheckpointHook', by_epoch=False, interval=max_iters),
    sampler_seed=dict(type='DistSamplerSeedHook'),
    visualization=dict(type='SegVisualizationHook'))
randomness = dict(seed=0)
log_processor = dict(by_epoch=False)
vis_backends = [dict(type='LocalVisBackend')]
visualizer = dict(type='SegLocalVisualizer', vis_backends=vis_backends, name='visualizer')
