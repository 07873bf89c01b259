# VTAB-1k (docs/how-to/datasets.md): all 1000 images train, the test split is evaluated. Images are resized, no more.
pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='Resize', scale=(224, 224)),
    dict(type='PackInputs')
]
train_dataloader = dict(
    batch_size=64,
    num_workers=4,
    persistent_workers=True,
    sampler=dict(type='DefaultSampler', shuffle=True),
    dataset=dict(type='mmprovpt.VTAB1k', data_root='data/vtab-1k', split='train800val200', pipeline=pipeline))
val_dataloader = dict(
    batch_size=64,
    num_workers=4,
    persistent_workers=True,
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(type='mmprovpt.VTAB1k', data_root='data/vtab-1k', split='test', pipeline=pipeline))
test_dataloader = val_dataloader
