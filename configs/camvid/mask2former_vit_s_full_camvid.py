# Full fine-tuning: as its VPT twin, without prompts, and nothing is frozen. The head, which starts from nothing, has
# the rate below, the pre-trained backbone a hundredth of it.
# Expected: 50.8 mIoU, 49.1 to 53.2 over three seeds ("full" with Mask2Former, docs/evidence/study.md).
_base_ = 'mask2former_vit_s_vpt_camvid.py'

model = dict(
    backbone={
        **{key: value for key, value in _base_.model.backbone.items() if key != 'prompts'}, 'type': 'VisionTransformer',
        '_delete_': True
    })
optim_wrapper = dict(
    optimizer=dict(lr=0.001), paramwise_cfg=dict(custom_keys={'backbone': dict(lr_mult=0.01)}))
default_hooks = dict(checkpoint=dict(_delete_=True, type='CheckpointHook', by_epoch=False, interval=460))
