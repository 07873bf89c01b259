# The segmentation job in minutes on two CPU cores: the real config with other data, a shorter schedule, smaller inputs
# and a smaller ViT. The data: tools/dataset_converters/miniature_coco.py; the checkpoint: tools/pretrain_miniature.py.
_base_ = '../setr_pup_vit_b_provpt_ade20k.py'

# Small ViT, 1.5 M parameters. Its patches are half as wide, so the head doubles once less.
data_preprocessor = dict(mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375], size=(128, 160))
model = dict(
    data_preprocessor=data_preprocessor,
    backbone=dict(
        arch=dict(_delete_=True, embed_dims=128, num_layers=6, num_heads=4, feedforward_channels=512),
        img_size=(128, 160),
        patch_size=8,
        patch_cfg=dict(kernel_size=24, padding=8),  # they overlap
        out_indices=[2, 3, 4, 5],
        init_cfg=dict(checkpoint='{{ fileDirname }}/vit_mini_digits.pth')),
    decode_head=dict(
        in_channels=128,
        channels=64,
        num_classes=13,
        num_convs=3,
        loss_decode=dict(class_weight=[1.] * 3 + [3.] * 10)),  # most pixels are background
    auxiliary_head=None,  # they cost as much as the backbone
    test_cfg=dict(_delete_=True, mode='whole'))

# Data
dataset = dict(
    type='BaseSegDataset',  # ADE20KDataset knows only ADE20k's classes
    data_root='data/miniature',
    img_suffix='.jpg',
    seg_map_suffix='.png',
    reduce_zero_label=True,
    metainfo=dict(
        classes=('sky', 'trees', 'leaves', '0', '1', '2', '3', '4', '5', '6', '7', '8', '9'),
        palette=[[135, 190, 250], [40, 120, 40], [20, 70, 90], [230, 25, 75], [245, 130, 48], [255, 225, 25],
                 [190, 240, 60], [60, 220, 120], [70, 240, 240], [0, 100, 220], [145, 30, 220], [240, 50, 230],
                 [250, 190, 190]]))
image_scale = (160, 128)
train_pipeline = [  # without RandomFlip: mirrored digits are not digits
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations', reduce_zero_label=True),
    dict(type='Resize', scale=image_scale, keep_ratio=True),
    dict(type='PackSegInputs')
]
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='Resize', scale=image_scale, keep_ratio=True),
    dict(type='LoadAnnotations', reduce_zero_label=True),
    dict(type='PackSegInputs')
]
train_dataloader = dict(
    batch_size=8,
    num_workers=0,  # reading an image takes a millisecond, and a worker would take a core
    persistent_workers=False,
    dataset=dict(dataset, pipeline=train_pipeline))
val_dataloader = dict(
    num_workers=0, persistent_workers=False, dataset=dict(dataset, pipeline=test_pipeline))
test_dataloader = val_dataloader
# Mirrored digits are not digits, and positions learned for one size do not stretch well.
tta_model = tta_pipeline = None

# Schedule: 25 epochs of 16 iterations. The head starts from noise, hence AdamW.
randomness = dict(seed=0)  # the same figures each time on one machine
max_iters = 400
train_cfg = dict(max_iters=max_iters, val_interval=max_iters)
optim_wrapper = dict(
    optimizer=dict(_delete_=True, type='AdamW', lr=0.001, weight_decay=0.01),
    clip_grad=dict(_delete_=True, max_norm=5.),
    paramwise_cfg=dict(custom_keys=dict(head=dict(lr_mult=4.))))
param_scheduler = [
    dict(type='LinearLR', start_factor=0.01, by_epoch=False, begin=0, end=20),
    dict(type='PolyLR', eta_min=1e-5, power=0.9, begin=20, end=max_iters, by_epoch=False)
]
default_hooks = dict(
    logger=dict(interval=16),
    checkpoint=dict(interval=max_iters))
custom_hooks = [dict(_base_.custom_hooks[0], interval=32)]
