# Full fine-tuning: as its VPT twin, without prompts, and nothing is frozen.
# Expected: 29.7 mIoU, 29.0 to 30.9 over three seeds ("full at 0.001", docs/evidence/study.md; one
# rate for head and backbone, which suits neither: those of UPerNet and Mask2Former have two).
_base_ = 'setr_pup_vit_s_vpt_camvid.py'

model = dict(
    backbone={
        **{key: value for key, value in _base_.model.backbone.items() if key != 'prompts'}, 'type': 'VisionTransformer',
        '_delete_': True
    })
optim_wrapper = dict(optimizer=dict(lr=0.001))
default_hooks = dict(checkpoint=dict(_delete_=True, type='CheckpointHook', by_epoch=False, interval=460))
