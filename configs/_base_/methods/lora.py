# LoRA: as full fine-tuning, but of the backbone only low-rank updates are trained, and at the largest learning rate of
# the same list. Checkpoints hold these updates and the head: LoRAModel leaves the rest out by itself.
_base_ = 'full.py'
optim_wrapper = dict(optimizer=dict(lr=0.005 * 64 / 256))
# Rank, scale, dropout and targets of mmpretrain's vit-base-p16_8xb64-lora_in1k-384px.py. A config adds the `module`.
lora = dict(type='LoRAModel', alpha=16, rank=16, drop_rate=0.1, targets=[dict(type='qkv')])
