# LoRA: as full fine-tuning, but of the backbone only low-rank updates are trained, and at the largest learning rate of
# the same list. Checkpoints hold these updates and the head: LoRAModel leaves the rest out by itself.
_base_ = ['full.py', '../lora.py']
optim_wrapper = dict(optimizer=dict(lr=0.005 * 64 / 256))
