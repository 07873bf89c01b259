# What the SETR configs take from `_base_` by name; two bases must not both have a `model`.

# MMPretrain's ViT, not MMSegmentation's: it reads the checkpoints of the classification configs, which are checked
# against timm (docs/how-to/weights.md). MMSegmentation's embeds patches without the bias that these weights have.
# Positions of 224 px become those of 512 px at loading, bilinear, as in MMSegmentation's SETR and timm's reader of .npz
# files. The class token stays for all three heads (MMSegmentation's MLA has none): the weights, frozen here, were
# trained with it.
# As in MMSegmentation, no norm follows the last block: SETR's heads begin with one.
backbone = dict(
    _scope_='mmpretrain',
    type='mmprovpt.PromptedVisionTransformer',
    arch='large',
    img_size=512,
    patch_size=16,
    out_indices=[9, 14, 19, 23],
    out_type='featmap',
    final_norm=False,
    interpolate_mode='bilinear',
    # The papers do not give the number of prompts for dense tasks.
    prompts=dict(type='StaticPrompts', num_tokens=10, dropout=0.1),
    init_cfg=dict(type='Pretrained', checkpoint='checkpoints/vit_l16_in21k.pth', prefix='backbone.'))

# Frozen weights want the pixels of their pre-training, and ViT-L_16.npz and ViT-B_16.npz had -1 to 1.
in21k_pixels = dict(mean=[127.5, 127.5, 127.5], std=[127.5, 127.5, 127.5])

# MMSegmentation's learning rate is for 8 GPUs with 2 images each (--auto-scale-lr).
auto_scale_lr = dict(base_batch_size=16)

# MMSegmentation's ratios and flip, but of the single scale and not of the file's own size.
multi_scale = [
    dict(type='LoadImageFromFile'),
    dict(
        type='TestTimeAug',
        transforms=[
            [
                dict(type='Resize', scale=(int(2048 * ratio), int(512 * ratio)), keep_ratio=True)
                for ratio in (0.5, 0.75, 1.0, 1.25, 1.5, 1.75)
            ],
            [dict(type='RandomFlip', prob=0., direction='horizontal'),
             dict(type='RandomFlip', prob=1., direction='horizontal')],
            [dict(type='LoadAnnotations')],
            [dict(type='PackSegInputs')]
        ])
]
