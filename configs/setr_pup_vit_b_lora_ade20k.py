# LoRA: as its full fine-tuning twin, but of the backbone only low-rank updates of queries, keys and values are trained.
_base_ = 'setr_pup_vit_b_full_ade20k.py'

# Numbers of _base_/methods/lora.py.
model = dict(
    backbone=dict(
        _delete_=True,
        type='mmpretrain.LoRAModel',
        alpha=16,
        rank=16,
        drop_rate=0.1,
        targets=[dict(type='qkv')],
        module=_base_.model.backbone))
