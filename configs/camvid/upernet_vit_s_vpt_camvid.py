# VPT-Deep: UPerNet on CamVid, all else as with SETR's head.
# Expected: 50.0 mIoU, 49.8 to 50.3 over three seeds ("VPT-Deep" with UPerNet, docs/evidence/study.md).
_base_ = 'setr_pup_vit_s_vpt_camvid.py'

norm_cfg = dict(type='BN', requires_grad=True)
model = dict(
    neck=dict(type='mmseg.Feature2Pyramid', embed_dim=384, rescales=[4, 2, 1, 0.5], norm_cfg=norm_cfg),
    decode_head=dict(
        _delete_=True,
        type='UPerHead',
        in_channels=[384] * 4,
        in_index=[0, 1, 2, 3],
        pool_scales=(1, 2, 3, 6),
        channels=64,
        dropout_ratio=0.1,
        num_classes=11,
        ignore_index=11,
        norm_cfg=norm_cfg,
        align_corners=False,
        loss_decode=dict(type='CrossEntropyLoss', use_sigmoid=False, loss_weight=1.0)))
