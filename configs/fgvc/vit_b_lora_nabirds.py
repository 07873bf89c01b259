# LoRA, FGVC: NABirds.
_base_ = ['../_base_/backbones/vit_b16_in21k.py', '../_base_/datasets/fgvc.py', '../_base_/methods/lora.py']
model = dict(
    backbone=dict(_base_.lora, _delete_=True, module=dict(_base_.model.backbone, type='VisionTransformer')),
    head=dict(num_classes=555))
train_dataloader = val_dataloader = test_dataloader = dict(dataset=dict(task='nabirds'))
grid_winner = None  # unknown: the learning rate and weight decay are the method's
