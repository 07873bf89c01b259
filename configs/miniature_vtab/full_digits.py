# Full fine-tuning, miniature VTAB: digits.
_base_ = 'full_category.py'
model = dict(head=dict(num_classes=10))
train_dataloader = val_dataloader = test_dataloader = dict(dataset=dict(task='digits', num_classes=10))
