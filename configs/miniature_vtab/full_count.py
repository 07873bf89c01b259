# Full fine-tuning, miniature VTAB: count.
_base_ = 'full_category.py'
model = dict(head=dict(num_classes=6))
train_dataloader = val_dataloader = test_dataloader = dict(dataset=dict(task='count', num_classes=6))
