# LoRA on the demo's data: as its full fine-tuning twin, but of the backbone only low-rank updates are trained.
_base_ = ['setr_pup_vit_mini_full_digits.py', '../_base_/lora.py']

model = dict(backbone=dict(_base_.lora, _delete_=True, module=_base_.model.backbone))
