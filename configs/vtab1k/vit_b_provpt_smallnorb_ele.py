# PRO-VPT, VTAB-1k: sNORB-Ele.
_base_ = ['../_base_/backbones/vit_b16_in21k.py', '../_base_/datasets/vtab1k.py', '../_base_/methods/provpt.py']
model = dict(backbone=dict(prompts=dict(type='StaticPrompts', num_tokens=200)), head=dict(num_classes=9))
train_dataloader = val_dataloader = test_dataloader = dict(dataset=dict(task='smallnorb_ele'))
