# Rank, scale, dropout and targets of mmpretrain's vit-base-p16_8xb64-lora_in1k-384px.py. A config adds the `module`.
lora = dict(type='mmpretrain.LoRAModel', alpha=16, rank=16, drop_rate=0.1, targets=[dict(type='qkv')])
