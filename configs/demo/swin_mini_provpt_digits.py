# A classification job in a minute on two CPU cores: the narrow Swin of the Mask R-CNN demo, whose checkpoint MMPretrain
# reads as MMDetection does, on an image folder. The data: tools/dataset_converters/miniature_coco.py.
_base_ = [
    '../_base_/backbones/swin_b_in21k.py', '../_base_/datasets/image_folder.py', '../_base_/methods/provpt_paper.py'
]

model = dict(
    backbone=dict(
        arch=dict(_delete_=True, embed_dims=24, depths=[2, 2, 6, 2], num_heads=[3, 6, 12, 24]),
        img_size=56,
        pad_small_map=True,  # the last two maps are smaller than a window
        prompts=dict(type='StaticPrompts', num_tokens=10, dropout=0.1),
        init_cfg=dict(checkpoint='{{ fileDirname }}/swin_mini_digits.pth')),
    head=dict(in_channels=192, num_classes=10))

# Data: without crops and flips, a part or a mirror image of a digit is another digit or none
data_root = 'data/miniature/digits'
pipeline = [dict(type='LoadImageFromFile'), dict(type='PackInputs')]
train_dataloader = dict(
    num_workers=0, persistent_workers=False, dataset=dict(data_root=data_root, pipeline=pipeline))
val_dataloader = dict(
    num_workers=0, persistent_workers=False, dataset=dict(data_root=data_root, pipeline=pipeline))
test_dataloader = val_dataloader

# Schedule
max_epochs = 10
train_cfg = dict(max_epochs=max_epochs, val_interval=max_epochs)
optim_wrapper = dict(optimizer=dict(lr=0.25))
param_scheduler = [dict(type='LinearLR', start_factor=0.01, by_epoch=False, begin=0, end=16)]
