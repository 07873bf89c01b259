# LoRA: as its full fine-tuning twin, but of the backbone only low-rank updates of queries, keys and values are trained.
# Expected: 47.0 mIoU, 46.1 to 48.5 over three seeds ("LoRA" with UPerNet, docs/evidence/study.md).
_base_ = ['upernet_vit_s_full_camvid.py', '../_base_/lora.py']

model = dict(backbone=dict(_base_.lora, _delete_=True, module=_base_.model.backbone))
optim_wrapper = dict(optimizer=dict(lr=0.003), paramwise_cfg=dict(custom_keys={'backbone': dict(lr_mult=1.0)}))
