# As vit_b16_in21k.py, through timm, which reads the published file itself.
model = dict(
    type='ImageClassifier',
    data_preprocessor=dict(mean=[127.5, 127.5, 127.5], std=[127.5, 127.5, 127.5], to_rgb=True),
    backbone=dict(
        type='mmprovpt.PromptedTIMMBackbone',
        model_name='vit_base_patch16_224',
        num_classes=0,
        checkpoint_path='checkpoints/ViT-B_16.npz'),
    neck=dict(type='mmprovpt.TIMMPooling', pool='token'),
    head=dict(type='LinearClsHead', in_channels=768))
