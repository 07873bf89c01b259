# ViT-B/16, supervised on ImageNet-21k (ViT-B_16.npz): docs/how-to/weights.md. Read is the class token behind the norm.
model = dict(
    type='ImageClassifier',
    data_preprocessor=dict(mean=[127.5, 127.5, 127.5], std=[127.5, 127.5, 127.5], to_rgb=True),
    backbone=dict(
        type='mmprovpt.PromptedVisionTransformer',
        arch='base',
        img_size=224,
        patch_size=16,
        init_cfg=dict(type='Pretrained', checkpoint='checkpoints/vit_b16_in21k.pth', prefix='backbone.')),
    head=dict(type='LinearClsHead', in_channels=768))
