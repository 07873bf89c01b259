# VPT-Deep: SETR-PUP on ADE20k, ViT-B/16 pre-trained on ImageNet-21k and frozen, 160k iterations
# (PRO-VPT, Table vii: 39.1 mIoU SS, 40.1 MS).
_base_ = 'setr_pup_vit_l_vpt_ade20k.py'

# MMSegmentation has no SETR on a ViT-B. The blocks are those of the SETR authors' configs for ViT-B (DeiT).
model = dict(
    backbone=dict(
        arch='base', out_indices=[4, 7, 9, 11], init_cfg=dict(checkpoint='checkpoints/vit_b16_in21k.pth')),
    decode_head=dict(in_channels=768),
    auxiliary_head=[dict(head, in_channels=768) for head in _base_.model.auxiliary_head])
