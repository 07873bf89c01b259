# LoRA, miniature VTAB: count.
_base_ = 'lora_category.py'
model = dict(head=dict(num_classes=6))
train_dataloader = val_dataloader = test_dataloader = dict(dataset=dict(task='count', num_classes=6))
