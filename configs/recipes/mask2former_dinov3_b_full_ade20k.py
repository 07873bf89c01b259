# Full fine-tuning: the backbone has a tenth of the learning rate.
_base_ = 'mask2former_dinov3_b_ade20k.py'
backbone = {key: value for key, value in _base_.model.backbone.items() if key != 'prompts'}
model = dict(backbone=dict(backbone, type='TIMMBackbone', _delete_=True))
custom_hooks = []
