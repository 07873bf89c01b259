# LoRA of queries, keys and values.
_base_ = ['mask_rcnn_dinov3_b_sfp_full_coco.py', '../_base_/lora.py']
backbone = dict(_base_.lora, module=_base_.model.backbone)
model = dict(backbone=dict(backbone, _delete_=True))
optim_wrapper = dict(paramwise_cfg=dict(custom_keys={'backbone': dict(lr_mult=1.0)}))
