"""Three tiny tasks on one Swin or ViT: a detector, a segmentor and a classifier of upstream, and batches for each."""
import numpy as np
import torch
from mmengine.config import Config
from mmengine.registry import MODELS, DefaultScope

from mmprovpt.tasks import join_tasks

CLASSES = 3
# Backbone, and the widths of its two maps.
SWIN = dict(
    type='mmprovpt.PromptedSwinTransformer', _scope_='mmpretrain', img_size=32, out_indices=(0, 1), window_size=4,
    arch=dict(embed_dims=8, depths=(1, 1), num_heads=(2, 2)), drop_path_rate=0.), [8, 16]
VIT = dict(
    type='mmprovpt.PromptedVisionTransformer', _scope_='mmpretrain', img_size=32, out_indices=(0, 1), patch_size=8,
    arch=dict(embed_dims=16, num_layers=2, num_heads=2, feedforward_channels=32), out_type='featmap'), [16, 16]
MEAN_STD = dict(mean=[120., 110., 100.], std=[60., 50., 40.], bgr_to_rgb=True)
BN = dict(type='BN')


def _loader(**dataset):
    return dict(batch_size=2, num_workers=0, sampler=dict(type='DefaultSampler', shuffle=True), dataset=dataset)


def _config(scope, model, backbone, loader, evaluator):
    loaders = {f'{phase}_dataloader': loader for phase in ('train', 'val', 'test')}
    return dict(loaders, default_scope=scope, val_evaluator=evaluator, test_evaluator=evaluator,
                model=dict(model, backbone=backbone))


def single_configs(root='data', backbone=SWIN):
    """Whole configs of single tasks; their data is written by :func:`write_data`."""
    backbone, widths = backbone
    detect = dict(
        type='RetinaNet', data_preprocessor=dict(type='DetDataPreprocessor', pad_size_divisor=16, **MEAN_STD),
        neck=dict(type='FPN', in_channels=widths, out_channels=8, num_outs=2),
        bbox_head=dict(
            type='RetinaHead', num_classes=CLASSES, in_channels=8, feat_channels=8, stacked_convs=1,
            anchor_generator=dict(type='AnchorGenerator', octave_base_scale=2, scales_per_octave=1, ratios=[1.],
                                  strides=[4, 8]),
            bbox_coder=dict(type='DeltaXYWHBBoxCoder')),
        train_cfg=dict(assigner=dict(type='MaxIoUAssigner', pos_iou_thr=0.5, neg_iou_thr=0.4),
                       allowed_border=-1, pos_weight=-1),
        test_cfg=dict(nms_pre=20, score_thr=0., nms=dict(type='nms', iou_threshold=0.5), max_per_img=5))
    segment = dict(
        type='EncoderDecoder',
        data_preprocessor=dict(type='SegDataPreProcessor', size=(32, 32), seg_pad_val=255, **MEAN_STD),
        # A norm with statistics: those of a frozen task must not change.
        decode_head=dict(type='FCNHead', in_channels=16, in_index=1, channels=8, num_convs=1, dropout_ratio=0.,
                         num_classes=CLASSES, norm_cfg=BN),
        train_cfg=dict(), test_cfg=dict(mode='whole'))
    classify = dict(
        type='ImageClassifier', data_preprocessor=dict(mean=[120.] * 3, std=[60.] * 3, to_rgb=True),
        neck=dict(type='GlobalAveragePooling'), head=dict(type='LinearClsHead', num_classes=CLASSES, in_channels=16))
    load, names = dict(type='LoadImageFromFile'), tuple(map(str, range(CLASSES)))
    static = dict(type='StaticPrompts', dropout=0.)
    return dict(
        detect=_config('mmdet', detect, dict(backbone, prompts=dict(static, num_tokens=2)), _loader(
            type='CocoDataset', data_root=f'{root}/detect', ann_file='boxes.json', data_prefix=dict(img=''),
            metainfo=dict(classes=names), pipeline=[
                load, dict(type='LoadAnnotations', with_bbox=True), dict(type='Resize', scale=(32, 32)), dict(
                    type='PackDetInputs', meta_keys=('img_id', 'img_shape', 'ori_shape', 'scale_factor'))]),
            dict(type='CocoMetric', ann_file=f'{root}/detect/boxes.json', metric='bbox')),
        segment=_config('mmseg', segment, dict(backbone, prompts=dict(
            type='AdaptivePrompts', num_tokens=1, dropout=0., channel_dropout=0., projector_dropout=0.)), _loader(
            type='BaseSegDataset', data_root=f'{root}/segment', img_suffix='.png', seg_map_suffix='.png',
            data_prefix=dict(img_path='images', seg_map_path='maps'), metainfo=dict(classes=names),
            pipeline=[load, dict(type='LoadAnnotations'), dict(type='PackSegInputs')]), dict(type='IoUMetric')),
        classify=_config('mmpretrain', classify, dict(backbone, prompts=dict(static, num_tokens=[0, 3])), dict(
            _loader(type='CustomDataset', data_root=f'{root}/classify', pipeline=[load, dict(type='PackInputs')]),
            collate_fn=dict(type='default_collate')), dict(type='Accuracy')))


def joined(root='data', train=None, backbone=SWIN, **more):
    """The config of all three, to be trained by iterations."""
    cfg = dict(
        join_tasks(single_configs(root, backbone)),
        optim_wrapper=dict(optimizer=dict(type='SGD', lr=0.05, momentum=0.9)),
        train_cfg=dict(type='mmprovpt.MultiTaskEpochTrainLoop', max_epochs=1, val_interval=1), **more)
    cfg['model']['train'] = train
    return Config(cfg)


def build(cfg, seed=0):
    """A model with weights that do not come from a file, all of them different."""
    torch.manual_seed(seed)
    with DefaultScope.overwrite_default_scope(cfg.default_scope):
        model = MODELS.build(cfg.model)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return model


def batch_of(cfg, task, count=2):
    """A batch of a task as its loader gives it, from the files."""
    from mmengine.runner import Runner
    loader = cfg.train_dataloader[task].copy()
    with DefaultScope.overwrite_default_scope(loader.pop('_scope_')):
        return next(iter(Runner.build_dataloader(dict(loader, batch_size=count), seed=0)))


def write_data(root):
    """Four images of 32 x 32 px for each task."""
    import json

    from PIL import Image
    rng = np.random.default_rng(0)
    boxes, images = [], []
    for folder in ('detect', 'segment/images', 'segment/maps', *(f'classify/{name}' for name in range(CLASSES))):
        (root / folder).mkdir(parents=True)
    for number in range(4):
        pixels = [rng.integers(0, 256, (32, 32, 3), np.uint8) for _ in range(3)]
        Image.fromarray(pixels[0]).save(root / f'detect/{number}.png')
        images.append(dict(id=number, file_name=f'{number}.png', width=32, height=32))
        for x, y in rng.integers(0, 16, (2, 2)).tolist():
            boxes.append(dict(id=len(boxes) + 1, image_id=number, category_id=len(boxes) % CLASSES, iscrowd=0,
                              bbox=[x, y, 14, 10], area=140))
        Image.fromarray(pixels[1]).save(root / f'segment/images/{number}.png')
        Image.fromarray(rng.integers(0, CLASSES, (32, 32), np.uint8)).save(root / f'segment/maps/{number}.png')
        Image.fromarray(pixels[2]).save(root / f'classify/{number % CLASSES}/{number}.png')
    categories = [dict(id=number, name=str(number)) for number in range(CLASSES)]
    (root / 'detect/boxes.json').write_text(json.dumps(dict(images=images, annotations=boxes, categories=categories)))
    return root
