# Full fine-tuning on the demo's data: no prompts, and nothing is frozen.
_base_ = 'swin_mini_vpt_digits.py'

model = dict(
    backbone={
        **{key: value for key, value in _base_.model.backbone.items() if key != 'prompts'}, 'type': 'SwinTransformer',
        '_delete_': True
    })
# As in _base_/methods/full.py
optim_wrapper = dict(optimizer=dict(_delete_=True, type='AdamW', lr=0.0005 * 64 / 256, weight_decay=0.0001))
default_hooks = dict(checkpoint=dict(type='CheckpointHook'))
