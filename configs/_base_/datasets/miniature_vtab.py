# A miniature of VTAB-1k, made by tools/dataset_converters/miniature_vtab.py, at 42 pixels.
_base_ = 'vtab1k.py'
pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='Resize', scale=(42, 42)),
    dict(type='PackInputs')
]
train_dataloader = val_dataloader = test_dataloader = dict(
    num_workers=0,
    persistent_workers=False,
    dataset=dict(data_root='data/miniature-vtab', pipeline=pipeline))
