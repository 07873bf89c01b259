# Full fine-tuning: as its VPT twin, without prompts, and nothing is frozen.
_base_ = 'upernet_vit_s_vpt_camvid.py'

model = dict(
    backbone={
        **{key: value for key, value in _base_.model.backbone.items() if key != 'prompts'}, 'type': 'VisionTransformer',
        '_delete_': True
    })
default_hooks = dict(checkpoint=dict(_delete_=True, type='CheckpointHook', by_epoch=False, interval=460))
