# A folder of your own (docs/how-to/custom_data.md): <data_root>/train/<class>/… and <data_root>/val/<class>/…
_base_ = 'fgvc.py'

train_dataloader = dict(dataset=dict(
    _delete_=True, type='CustomDataset', data_root='data/custom', data_prefix='train',
    pipeline={{_base_.train_pipeline}}))
val_dataloader = dict(dataset=dict(
    _delete_=True, type='CustomDataset', data_root='data/custom', data_prefix='val',
    pipeline={{_base_.test_pipeline}}))
test_dataloader = val_dataloader
