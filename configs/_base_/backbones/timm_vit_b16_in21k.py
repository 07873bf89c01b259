# As vit_b16_in21k.py, through timm, which reads the published file itself.
model = dict(
    type='ImageClassifier',
    backbone=dict(
        type='mmprovpt.PromptedTIMMBackbone',
        model_name='vit_base_patch16_224',
        num_classes=0,
        checkpoint_path='checkpoints/ViT-B_16.npz'),
    neck=dict(type='mmprovpt.TIMMPooling', pool='token'))
