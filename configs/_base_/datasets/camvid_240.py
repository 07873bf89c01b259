# CamVid at 240 x 180 px, 367 / 101 / 233 images, in ADE20k's layout; label 11 is ignored. Images become 224 x 168:
# 16 x 12 patches of 14.
classes = ('sky', 'building', 'pole', 'road', 'pavement', 'tree', 'sign', 'fence', 'car', 'pedestrian', 'bicyclist')
palette = [[70, 130, 180], [70, 70, 70], [153, 153, 153], [128, 64, 128], [244, 35, 232], [107, 142, 35],
           [220, 220, 0], [190, 153, 153], [0, 0, 142], [220, 20, 60], [119, 11, 32]]
ignore_index = 11
scale = (224, 168)
train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations'),
    dict(type='Resize', scale=scale),
    dict(type='RandomFlip', prob=0.5),
    dict(type='PackSegInputs')
]
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='Resize', scale=scale),
    dict(type='LoadAnnotations'),  # behind Resize: the labels stay as large as they are
    dict(type='PackSegInputs')
]
dataset = dict(
    type='BaseSegDataset', data_root='data/camvid_240', img_suffix='.jpg', seg_map_suffix='.png',
    metainfo=dict(classes=classes, palette=palette))

train_dataloader = dict(
    batch_size=8, num_workers=0, persistent_workers=False, sampler=dict(type='InfiniteSampler', shuffle=True),
    dataset=dict(dataset, data_prefix=dict(img_path='images/train', seg_map_path='annotations/train'),
                 pipeline=train_pipeline))
val_dataloader = dict(
    batch_size=1, num_workers=0, persistent_workers=False, sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(dataset, data_prefix=dict(img_path='images/val', seg_map_path='annotations/val'),
                 pipeline=test_pipeline))
test_dataloader = dict(
    val_dataloader, dataset=dict(
        dataset, data_prefix=dict(img_path='images/test', seg_map_path='annotations/test'), pipeline=test_pipeline))
val_evaluator = test_evaluator = dict(type='IoUMetric', iou_metrics=['mIoU'], ignore_index=ignore_index)
