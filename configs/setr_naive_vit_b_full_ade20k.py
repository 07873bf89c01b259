# Full fine-tuning: as its VPT twin, without prompts, and nothing is frozen.
_base_ = 'setr_naive_vit_b_vpt_ade20k.py'

model = dict(
    backbone={
        **{key: value for key, value in _base_.model.backbone.items() if key != 'prompts'}, 'type': 'VisionTransformer',
        '_delete_': True
    })
