# Full fine-tuning, miniature VTAB: location.
_base_ = 'full_category.py'
model = dict(head=dict(num_classes=8))
train_dataloader = val_dataloader = test_dataloader = dict(dataset=dict(task='location', num_classes=8))
