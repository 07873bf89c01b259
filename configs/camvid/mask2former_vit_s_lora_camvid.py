# LoRA: as its full fine-tuning twin, but of the backbone only low-rank updates of queries, keys and values are trained.
# Expected: 51.3 mIoU, 50.3 to 52.2 over three seeds ("LoRA" with Mask2Former, docs/evidence/study.md).
_base_ = ['mask2former_vit_s_full_camvid.py', '../_base_/lora.py']

model = dict(backbone=dict(_base_.lora, _delete_=True, module=_base_.model.backbone))
optim_wrapper = dict(optimizer=dict(lr=0.001), paramwise_cfg=dict(custom_keys={'backbone': dict(lr_mult=1.0)}))
