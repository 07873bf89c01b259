# Mask R-CNN on DINOv3 ViT-B/16, whose weights timm fetches by name (their license is Meta's DINOv3 License), with the
# simple feature pyramid of ViTDet. Unlike there, all blocks attend globally.
_base_ = 'mask_rcnn_vit_b_sfp_coco.py'
backbone = dict(
    _delete_=True, type='mmprovpt.PromptedTIMMBackbone', prompts=dict(type='StaticPrompts', num_tokens=10),
    model_name='vit_base_patch16_dinov3', pretrained=True, features_only=True, out_indices=(11, ))
model = dict(backbone=backbone)
