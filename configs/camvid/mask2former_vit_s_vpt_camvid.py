# VPT-Deep: Mask2Former on CamVid, narrower and less deep than in its paper; all else as with the head of SETR. It needs
# MMDetection.
# Expected: 48.3 mIoU, 48.0 to 48.4 over three seeds ("VPT-Deep" with Mask2Former, docs/evidence/study.md).
_base_ = 'setr_pup_vit_s_vpt_camvid.py'

custom_imports = dict(imports='mmdet.models', allow_failed_imports=False)
num_classes, width, levels, heads = 11, 64, 3, 4
positional_encoding = dict(num_feats=width // 2, normalize=True)
attention = dict(embed_dims=width, num_heads=heads, batch_first=True)
feed_forward = dict(embed_dims=width, feedforward_channels=4 * width, act_cfg=dict(type='ReLU', inplace=True))
optim_wrapper = dict(optimizer=dict(lr=0.003))  # the best of three (docs/evidence/study.md), as in its twins
model = dict(
    neck=dict(
        type='mmprovpt.SimpleFeaturePyramid', in_channels=384, out_channels=width, num_outs=4),
    decode_head=dict(
        _delete_=True,
        type='Mask2FormerHead',
        in_channels=[width] * 4,
        strides=[4, 8, 16, 32],
        feat_channels=width,
        out_channels=width,
        num_classes=num_classes,
        ignore_index=11,
        num_queries=25,
        num_transformer_feat_level=levels,
        align_corners=False,
        pixel_decoder=dict(
            type='mmdet.MSDeformAttnPixelDecoder',
            num_outs=levels,
            norm_cfg=dict(type='GN', num_groups=8),
            act_cfg=dict(type='ReLU'),
            encoder=dict(
                num_layers=2,
                layer_cfg=dict(
                    self_attn_cfg=dict(attention, num_levels=levels, num_points=4, dropout=0.0),
                    ffn_cfg=feed_forward)),
            positional_encoding=positional_encoding),
        positional_encoding=positional_encoding,
        transformer_decoder=dict(
            return_intermediate=True,
            num_layers=3,
            layer_cfg=dict(self_attn_cfg=attention, cross_attn_cfg=attention, ffn_cfg=feed_forward)),
        loss_cls=dict(
            type='mmdet.CrossEntropyLoss', use_sigmoid=False, loss_weight=2.0, reduction='mean',
            class_weight=[1.0] * num_classes + [0.1]),
        loss_mask=dict(type='mmdet.CrossEntropyLoss', use_sigmoid=True, reduction='mean', loss_weight=5.0),
        loss_dice=dict(
            type='mmdet.DiceLoss', use_sigmoid=True, activate=True, reduction='mean', naive_dice=True, eps=1.0,
            loss_weight=5.0),
        train_cfg=dict(
            num_points=2048,
            oversample_ratio=3.0,
            importance_sample_ratio=0.75,
            assigner=dict(
                type='mmdet.HungarianAssigner',
                match_costs=[
                    dict(type='mmdet.ClassificationCost', weight=2.0),
                    dict(type='mmdet.CrossEntropyLossCost', weight=5.0, use_sigmoid=True),
                    dict(type='mmdet.DiceCost', weight=5.0, pred_act=True, eps=1.0)
                ]),
            sampler=dict(type='mmdet.MaskPseudoSampler'))))
