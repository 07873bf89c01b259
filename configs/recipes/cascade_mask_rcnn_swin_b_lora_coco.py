# LoRA of queries, keys and values.
_base_ = ['cascade_mask_rcnn_swin_b_full_coco.py', '../_base_/lora.py']
backbone = dict(_base_.lora, module=dict(_base_.model.backbone, type='mmdet.SwinTransformer'))
model = dict(backbone=dict(backbone, _delete_=True))
optim_wrapper = dict(paramwise_cfg=dict(custom_keys={'backbone': dict(lr_mult=1.0)}))
