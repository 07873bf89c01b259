# Full fine-tuning: the backbone has a tenth of the learning rate.
_base_ = 'mask_rcnn_dinov3_b_sfp_coco.py'
backbone = {key: value for key, value in _base_.model.backbone.items() if key != 'prompts'}
model = dict(backbone=dict(backbone, type='mmpretrain.TIMMBackbone', _delete_=True))
optim_wrapper = dict(paramwise_cfg=dict(custom_keys={'backbone': dict(lr_mult=0.1)}))
custom_hooks = []
