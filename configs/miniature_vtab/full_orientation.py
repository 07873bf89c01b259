# Full fine-tuning, miniature VTAB: orientation.
_base_ = 'full_category.py'
model = dict(head=dict(num_classes=8))
train_dataloader = val_dataloader = test_dataloader = dict(dataset=dict(task='orientation', num_classes=8))
