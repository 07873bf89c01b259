# LoRA: as its full fine-tuning twin, but of the backbone only low-rank updates of queries, keys and values are trained.
# Expected: 43.2 mIoU, 43.1 to 43.4 over three seeds ("LoRA at 0.003", docs/evidence/study.md).
_base_ = ['setr_pup_vit_s_full_camvid.py', '../_base_/lora.py']

model = dict(backbone=dict(_base_.lora, _delete_=True, module=_base_.model.backbone))
optim_wrapper = dict(optimizer=dict(lr=0.003))
