# The main job in minutes on two CPU cores: the real config with other data, a shorter schedule, smaller inputs (and the
# numbers of boxes that suit them) and a narrower Swin. The data: tools/dataset_converters/miniature_coco.py; the
# checkpoint: tools/pretrain_miniature.py.
_base_ = '../mask_rcnn_swin_t_provpt_coco.py'

metainfo = dict(
    classes=('0', '1', '2', '3', '4', '5', '6', '7', '8', '9'),
    palette=[(230, 25, 75), (245, 130, 48), (255, 225, 25), (190, 240, 60), (60, 220, 120), (70, 240, 240),
             (0, 100, 220), (145, 30, 220), (240, 50, 230), (250, 190, 190)])
num_classes = len(metainfo['classes'])
# Narrower Swin, 1.8 M parameters
model = dict(
    backbone=dict(
        embed_dims=24,
        convert_weights=False,
        init_cfg=dict(checkpoint='{{ fileDirname }}/swin_mini_digits.pth')),
    neck=dict(in_channels=[24, 48, 96, 192]),
    roi_head=dict(bbox_head=dict(num_classes=num_classes), mask_head=dict(num_classes=num_classes)),
    # An image has 5 thousand anchors and 2 to 4 objects, not 270 thousand and 7. On a CPU the second stage costs as
    # much as all the rest even so.
    train_cfg=dict(rpn_proposal=dict(nms_pre=500, max_per_img=200), rcnn=dict(sampler=dict(num=32))),
    test_cfg=dict(rpn=dict(nms_pre=500, max_per_img=100), rcnn=dict(max_per_img=20)))

# Data
data_root = 'data/miniature/'
image_scale = (160, 128)
train_pipeline = [  # without RandomFlip: mirrored digits are not digits
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations', with_bbox=True, with_mask=True),
    dict(type='Resize', scale=image_scale, keep_ratio=True),
    dict(type='PackDetInputs', meta_keys=('img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor'))
]
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='Resize', scale=image_scale, keep_ratio=True),
    dict(type='LoadAnnotations', with_bbox=True, with_mask=True),
    dict(type='PackDetInputs', meta_keys=('img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor'))
]
train_dataloader = dict(
    batch_size=4,
    num_workers=0,  # reading an image takes a millisecond, and a worker would take a core
    persistent_workers=False,
    dataset=dict(
        data_root=data_root,
        metainfo=metainfo,
        ann_file='annotations/instances_train.json',
        data_prefix=dict(img='train/'),
        pipeline=train_pipeline))
val_dataloader = dict(
    num_workers=0,
    persistent_workers=False,
    dataset=dict(
        data_root=data_root,
        metainfo=metainfo,
        ann_file='annotations/instances_val.json',
        data_prefix=dict(img='val/'),
        pipeline=test_pipeline))
test_dataloader = val_dataloader
val_evaluator = dict(ann_file=data_root + 'annotations/instances_val.json')
test_evaluator = val_evaluator

# Schedule: neck and heads start from noise and have 192 iterations, hence the learning rate
randomness = dict(seed=0)  # the same figures each time on one machine
max_epochs = 6
train_cfg = dict(max_epochs=max_epochs, val_interval=max_epochs)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.01, by_epoch=False, begin=0, end=30),
    dict(type='MultiStepLR', begin=0, end=max_epochs, by_epoch=True, milestones=[5], gamma=0.1)
]
optim_wrapper = dict(optimizer=dict(lr=0.0005), clip_grad=dict(max_norm=5.))
default_hooks = dict(
    logger=dict(interval=10),
    checkpoint=dict(interval=max_epochs))  # 250 MB each, with Adam's moments
log_processor = dict(window_size=10)
custom_hooks = [dict(_base_.custom_hooks[0], interval=1, by_epoch=True)]
