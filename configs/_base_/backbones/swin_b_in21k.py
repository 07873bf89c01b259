# Swin-B, supervised on ImageNet-22k (swin_base_patch4_window7_224_22k.pth). The last stage is normed and averaged.
model = dict(
    type='ImageClassifier',
    data_preprocessor=dict(mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375], to_rgb=True),
    backbone=dict(
        type='mmprovpt.PromptedSwinTransformer',
        arch='base',
        img_size=224,
        patch_size=4,
        window_size=7,
        init_cfg=dict(type='Pretrained', checkpoint='checkpoints/swin_b_in21k.pth', prefix='backbone.')),
    neck=dict(type='GlobalAveragePooling'),
    head=dict(type='LinearClsHead', in_channels=1024))
