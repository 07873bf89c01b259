# LoRA: as its full fine-tuning twin, but of the backbone only low-rank updates of queries, keys and values are trained.
_base_ = ['setr_mla_vit_b_full_ade20k.py', '_base_/lora.py']

model = dict(backbone=dict(_base_.lora, _delete_=True, module=_base_.model.backbone))
