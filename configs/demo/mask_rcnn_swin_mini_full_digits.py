# Full fine-tuning on the demo's data: no prompts, and nothing is frozen.
_base_ = 'mask_rcnn_swin_mini_vpt_digits.py'

model = dict(
    backbone={
        **{key: value for key, value in _base_.model.backbone.items() if key != 'prompts'}, 'type': 'SwinTransformer',
        '_delete_': True
    })
