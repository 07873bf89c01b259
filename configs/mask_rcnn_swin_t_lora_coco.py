# LoRA: as its full fine-tuning twin, but of the backbone only low-rank updates of queries, keys and values are trained.
_base_ = ['mask_rcnn_swin_t_full_coco.py', '_base_/lora.py']

model = dict(
    backbone=dict(_base_.lora, _delete_=True, module=dict(_base_.model.backbone, type='mmdet.SwinTransformer')))
