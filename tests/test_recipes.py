"""The recipes: what they train, that their parts fit, and each shrunk through training, relocation and reloading."""
import json
import logging
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.logging import MMLogger
from mmengine.registry import MODELS, DefaultScope
from mmengine.runner import load_checkpoint
from PIL import Image

from mmprovpt.cli.parameters import build_uninitialised, count_config
from mmprovpt.cli.runner import adapt_to_cpu, build_runner

ROOT = Path(__file__).parents[1]
RECIPES = ROOT / 'configs' / 'recipes'
SIZE = 64
META = 'img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor', 'text', 'custom_entities'
SWIN = {'depths': [1, 1, 1, 1], 'num_heads': [1, 2, 4, 8], 'embed_dims': 24}
WIDTHS = [24, 48, 96, 192]
VIT = dict(img_size=(SIZE, SIZE), embed_dims=32, num_layers=3, num_heads=2)
MASK2FORMER = {
    'in_channels': WIDTHS, 'num_queries': 5, 'transformer_decoder.num_layers': 1,
    'pixel_decoder.encoder.num_layers': 1, 'train_cfg.num_points': 64}
# Of a region-based detector: narrow heads, few regions.
REGIONS = {
    'roi_head.mask_head.conv_out_channels': 16, 'roi_head.mask_head.num_convs': 1,
    'train_cfg.rpn_proposal.max_per_img': 20, 'test_cfg.rpn.max_per_img': 20, 'test_cfg.rcnn.max_per_img': 5}


def below(prefix, options):
    return {f'{prefix}.{key}': value for key, value in options.items()}


def timm_vit(*out_indices):
    return below('backbone', dict(pretrained=False, embed_dim=32, depth=4, num_heads=2, out_indices=out_indices))


CASCADE = {**{f'roi_head.bbox_head.{stage}.fc_out_channels': 32 for stage in range(3)},
           **{f'train_cfg.rcnn.{stage}.sampler.num': 8 for stage in range(3)}}
UPERNET_DINOV3 = {
    **timm_vit(0, 1, 2, 3), 'neck.embed_dim': 32, **below('decode_head', dict(in_channels=[32] * 4, channels=16)),
    **below('auxiliary_head', dict(in_channels=32, channels=16))}
MASK2FORMER_DINOV3 = {
    **timm_vit(3), **below('neck', dict(in_channels=32, out_channels=16)),
    **below('decode_head', dict(MASK2FORMER, in_channels=[16] * 4))}
# What makes each recipe's model small: overrides of `model`.
SHRINK = {
    'upernet_dinov3_b_ade20k': UPERNET_DINOV3, 'upernet_dinov3_l_ade20k': UPERNET_DINOV3,
    'mask2former_dinov3_b_ade20k': MASK2FORMER_DINOV3, 'mask2former_dinov3_l_ade20k': MASK2FORMER_DINOV3,
    'mask_rcnn_dinov3_b_sfp_coco': {
        **timm_vit(3), 'neck.in_channels': 32, **REGIONS, 'roi_head.bbox_head.fc_out_channels': 32,
        'train_cfg.rcnn.sampler.num': 8},
    'cascade_mask_rcnn_swin_b_coco': {**below('backbone', SWIN), 'neck.in_channels': WIDTHS, **REGIONS, **CASCADE},
    'glip_swin_t_coco': {
        **below('backbone', SWIN), 'neck.in_channels': WIDTHS[1:], 'bbox_head.num_classes': 3,
        'bbox_head.num_dyhead_blocks': 1},
    'grounding_dino_swin_t_coco': {
        **below('backbone', SWIN), 'neck.in_channels': WIDTHS[1:], 'num_queries': 5, 'encoder.num_layers': 1,
        'decoder.num_layers': 1, 'bbox_head.num_classes': 3, 'test_cfg.max_per_img': 5},
    'cascade_mask_rcnn_swin_t_coco': {**below('backbone', SWIN), 'neck.in_channels': WIDTHS, **REGIONS, **CASCADE},
    'retinanet_swin_t_coco': {**below('backbone', SWIN), 'neck.in_channels': WIDTHS[1:], 'bbox_head.stacked_convs': 1},
    'mask2former_swin_t_coco': {
        **below('backbone', SWIN), **below('panoptic_head', dict(MASK2FORMER)), 'train_cfg.num_points': 64,
        'data_preprocessor.batch_augments': None, 'test_cfg.max_per_image': 5},
    'mask_rcnn_vit_b_sfp_coco': {
        'backbone.arch': dict(
            _delete_=True, embed_dims=32, num_layers=3, num_heads=2, feedforward_channels=64),
        'neck.in_channels': 32, **REGIONS, 'roi_head.bbox_head.fc_out_channels': 32,
        'train_cfg.rcnn.sampler.num': 8},
    'retinanet_timm_swin_t_coco': {
        **below('backbone', dict(pretrained=False, embed_dim=24, depths=(1, 1, 1, 1), num_heads=(1, 2, 4, 8))),
        'neck.in_channels': WIDTHS[1:], 'bbox_head.stacked_convs': 1},
    'upernet_swin_t_ade20k': {
        **below('backbone', SWIN), **below('decode_head', dict(in_channels=WIDTHS, channels=16)),
        **below('auxiliary_head', dict(in_channels=96, channels=16))},
    'upernet_vit_b_ade20k': {
        **below('backbone', dict(VIT, num_layers=4, out_indices=(0, 1, 2, 3))),
        **below('neck', dict(in_channels=[32] * 4, out_channels=16)),
        **below('decode_head', dict(in_channels=[16] * 4, channels=16)),
        **below('auxiliary_head', dict(in_channels=16, channels=16))},
    'segmenter_vit_s_ade20k': {
        **below('backbone', VIT),
        **below('decode_head', dict(in_channels=32, channels=32, embed_dims=32, num_heads=2, num_layers=1))},
    'mask2former_swin_t_ade20k': {**below('backbone', SWIN), **below('decode_head', MASK2FORMER)},
    'swin_l_cub': {
        'backbone.arch': dict(_delete_=True, embed_dims=24, depths=[1, 1, 1, 1], num_heads=[1, 2, 4, 8]),
        'backbone.img_size': SIZE, 'backbone.pad_small_map': True, 'head.in_channels': 192,
        'head.num_classes': 3},  # the only place: the preprocessor's 200 is for soft labels, which this recipe has not
}
# Widths of the blocks of each, from the papers of the backbones.
SWIN_T = [96] * 2 + [192] * 2 + [384] * 6 + [768] * 2
BLOCKS = dict.fromkeys(SHRINK, SWIN_T)
BLOCKS.update(mask_rcnn_vit_b_sfp_coco=[768] * 12, upernet_vit_b_ade20k=[768] * 12, segmenter_vit_s_ade20k=[384] * 12,
              swin_l_cub=[192] * 2 + [384] * 2 + [768] * 18 + [1536] * 2,
              cascade_mask_rcnn_swin_b_coco=[128] * 2 + [256] * 2 + [512] * 18 + [1024] * 2)
BLOCKS.update({name: [1024] * 24 if 'dinov3_l_' in name else [768] * 12 for name in SHRINK if 'dinov3' in name})
# Those that have baselines without prompts.
BASED = ['upernet_dinov3_b_{}ade20k', 'mask2former_dinov3_b_{}ade20k', 'mask_rcnn_dinov3_b_sfp_{}coco',
         'cascade_mask_rcnn_swin_b_{}coco']
BASELINES = 'frozen', 'full', 'lora'


@pytest.fixture(scope='module')
def data(tmp_path_factory):
    """Three images with boxes and masks in COCO's format, label maps in ADE20k's, and a folder for each class."""
    folder = tmp_path_factory.mktemp('data')
    rng = np.random.default_rng(0)
    images, annotations = [], []
    for number in range(3):
        for kind in ('images', f'classes/{number}', 'maps'):
            (folder / kind).mkdir(parents=True, exist_ok=True)
        image = Image.fromarray(rng.integers(0, 256, (SIZE, SIZE, 3), np.uint8))
        image.save(folder / f'images/{number}.jpg')
        image.save(folder / f'classes/{number}/{number}.jpg')
        Image.fromarray(rng.integers(0, 4, (4, 4), np.uint8)).resize((SIZE, SIZE)).save(folder / f'maps/{number}.png')
        images.append(dict(id=number, file_name=f'{number}.jpg', height=SIZE, width=SIZE))
        for x, y, side, category in ((4, 6, 20, 1), (30, 20, 28, 3)):
            corners = [x, y, x + side, y, x + side, y + side, x, y + side]
            annotations.append(dict(id=len(annotations) + 1, image_id=number, category_id=category, iscrowd=0,
                                    bbox=[x, y, side, side], area=side * side, segmentation=[corners]))
    categories = [dict(id=1, name='person'), dict(id=2, name='bicycle'), dict(id=3, name='car')]
    (folder / 'coco.json').write_text(json.dumps(dict(images=images, annotations=annotations, categories=categories)))
    return folder


def dataset(scope, folder):
    """What reads the data with a codebase's own data set and transforms, without chance."""
    load = [dict(type='LoadImageFromFile')]
    if scope == 'mmdet':
        return dict(
            type='CocoDataset', data_root=str(folder), ann_file='coco.json', data_prefix=dict(img='images'),
            pipeline=[*load, dict(type='LoadAnnotations', with_bbox=True, with_mask=True),
                      dict(type='Resize', scale=(SIZE, SIZE)), dict(type='PackDetInputs', meta_keys=META)])
    if scope == 'mmseg':
        return dict(
            type='ADE20KDataset', data_root=str(folder), data_prefix=dict(img_path='images', seg_map_path='maps'),
            pipeline=[*load, dict(type='LoadAnnotations', reduce_zero_label=True), dict(type='PackSegInputs')])
    return dict(type='CustomDataset', data_root=str(folder / 'classes'), pipeline=[*load, dict(type='PackInputs')])


def small_bert(folder):
    """A folder that transformers reads a BERT from, with the words of the data."""
    from transformers import BertConfig, BertModel
    if not folder.exists():
        words = ['[PAD]', '[UNK]', '[CLS]', '[SEP]', '[MASK]', '.', '?', 'person', 'bicycle', 'car']
        BertModel(BertConfig(len(words), hidden_size=32, num_hidden_layers=1, num_attention_heads=2,
                             intermediate_size=32)).save_pretrained(folder)
        (folder / 'vocab.txt').write_text('\n'.join(words))
    return str(folder)


def small(name, folder, work_dir):
    """A recipe with a narrow model, without weights, that trains two iterations with a relocation after the first."""
    cfg = Config.fromfile(RECIPES / f'{name}.py')
    cfg.merge_from_dict(below('model', SHRINK[name]))
    for node in (cfg.model, cfg.model.backbone):
        node.update({key: None for key in ('init_cfg', 'pretrained') if node.get(key)})
    cfg.model.setdefault('data_preprocessor', cfg.get('data_preprocessor'))  # as the Runner does
    if cfg.default_scope == 'mmseg':
        cfg.model.data_preprocessor.size = (SIZE, SIZE)
    cfg.train_dataloader = dict(
        batch_size=2, num_workers=0, sampler=dict(type='InfiniteSampler'), dataset=dataset(cfg.default_scope, folder))
    if 'language_model' in cfg.model:
        cfg.model.language_model.name = small_bert(folder / 'bert')
        if 'lang_model_name' in cfg.model.bbox_head:
            cfg.model.bbox_head.lang_model_name = cfg.model.language_model.name
        cfg.train_dataloader.dataset.update(
            metainfo=dict(classes=('person', 'bicycle', 'car')), return_classes=True)
        cfg.load_from = None
    for phase in ('val', 'test'):
        cfg.update({f'{phase}_{part}': None for part in ('dataloader', 'evaluator', 'cfg')})
    cfg.train_cfg = dict(type='IterBasedTrainLoop', max_iters=2, val_interval=9)
    cfg.param_scheduler = None
    cfg.custom_hooks[-1].update(interval=1, by_epoch=False, pruner=dict(type='RandomPruner'))
    cfg.default_hooks.checkpoint = dict(type='CheckpointHook', by_epoch=False, interval=2)
    cfg.randomness = dict(seed=0)
    cfg.work_dir, cfg.experiment_name = str(work_dir), name
    return cfg


class Snapshot(Hook):
    """Keep the weights that training starts from."""

    def __init__(self, weights):
        self.weights = weights

    def before_train(self, runner):
        self.weights.update({key: value.clone() for key, value in runner.model.state_dict().items()})


def groups(names):
    """Which parts of a model the parameters belong to."""
    return {name.split('.')[0] for name in names}


def predictions(model, batch):
    """All tensors of what a model predicts."""
    found = []
    for sample in model.test_step(batch):
        for value in (sample.get('pred_instances'), sample.get('seg_logits'), sample.get('pred_score')):
            found += [value] if isinstance(value, torch.Tensor) else value.values() if value is not None else []
    assert len(found) >= 2
    return [value for value in found if not isinstance(value, list)]  # names of classes


def test_every_recipe_is_tested_and_short():
    files = sorted(RECIPES.glob('*.py'))
    baselines = {name.format(f'{method}_') for name in BASED for method in BASELINES}
    assert {path.stem for path in files} == {*SHRINK, *baselines}
    for path in files:
        own = [line for line in path.read_text().splitlines() if line.strip() and not line.startswith('#')]
        assert len(own) <= 11, path


@pytest.fixture
def plain_logs(monkeypatch):
    """Without what takes half of the time and is tested elsewhere: the layout of the config's text, and the figure."""
    monkeypatch.setattr('yapf.yapflib.yapf_api.FormatCode', lambda text, **kwargs: (text, True))
    monkeypatch.setattr('mmprovpt.visualization.plot_relocation', lambda runs, path: None)


@pytest.fixture
def whole_grounding_dino(monkeypatch):
    """OneDL's MMDetection 3.5.1 has made DINO's encodings of positions longer, but not what reads them here."""
    from mmdet.models.layers.transformer import dino_layers
    original = dino_layers.coordinate_to_encoding
    monkeypatch.setattr(dino_layers, 'coordinate_to_encoding', lambda boxes, num_feats: original(boxes, num_feats // 2))


# A ViT-L that is made small is a ViT-B that is made small.
@pytest.mark.parametrize('name', [name for name in SHRINK if 'dinov3_l_' not in name])
def test_trains_relocates_reloads(name, data, tmp_path, plain_logs, request):
    if name.startswith('grounding_dino'):
        request.getfixturevalue('whole_grounding_dino')
    cfg = small(name, data, tmp_path)
    runner = build_runner(cfg)
    before = {}
    runner.register_hook(Snapshot(before))
    runner.train()
    model, after = runner.model, runner.model.state_dict()
    changed = {key for key, value in after.items() if not torch.equal(value, before[key])}
    assert {key for key in changed if key.startswith('backbone.')} == {
        'backbone.prompts.tokens', 'backbone.prompts.block_index'}
    wanted = {key for key, parameter in model.named_parameters() if parameter.requires_grad}
    assert groups(changed) == groups(wanted) and len(groups(wanted)) > 1
    rows = [json.loads(line) for path in tmp_path.glob('*/relocations.jsonl') for line in path.read_text().splitlines()]
    assert rows[0]['iter'] == 1 and rows[0]['prompt'] is not None
    assert rows[-1]['distribution'] == model.backbone.prompts.distribution.tolist()
    # As the rest of what is new: an optimizer that slows the backbone down must not slow the prompts down.
    lr, = {group['lr'] for group in runner.optim_wrapper.param_groups
           if any(parameter is model.backbone.prompts.tokens for parameter in group['params'])}
    assert lr == cfg.optim_wrapper.optimizer.lr

    with DefaultScope.overwrite_default_scope(cfg.default_scope):
        other = MODELS.build(cfg.model)
        load_checkpoint(other, str(tmp_path / 'iter_2.pth'), strict=True)
        assert all(torch.equal(value, after[key]) for key, value in other.state_dict().items())
        batch = next(iter(runner.train_dataloader))
        with torch.no_grad():
            ours, theirs = (predictions(each.eval(), batch) for each in (model, other))
    assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


@pytest.mark.parametrize('name', SHRINK)
def test_full_size(name, data):
    """Parts fit, and prompts, heads and policy are all that trains; docs/how-to/recipes.md says how much."""
    MMLogger.get_instance('mmengine', log_level=logging.WARNING)
    cfg = Config.fromfile(RECIPES / f'{name}.py')
    adapt_to_cpu(cfg)
    if 'language_model' in cfg.model:
        cfg.model.language_model.name = small_bert(data / 'bert')
        if 'lang_model_name' in cfg.model.bbox_head:
            cfg.model.bbox_head.lang_model_name = cfg.model.language_model.name
    model, widths = build_uninitialised(cfg).eval(), BLOCKS[name]
    assert model.backbone.prompts.widths == widths
    # MMPretrain's map would be smaller than a window. A ViT-L is one more of the same, and slow.
    if cfg.default_scope != 'mmpretrain' and 'dinov3_l_' not in name:
        with torch.no_grad():
            model.extract_feat(torch.zeros(1, 3, SIZE, SIZE))
    rest = sum(p.numel() for key, p in model.named_parameters() if not key.startswith('backbone.') and p.requires_grad)
    inputs, blocks = 3 * len(widths), len(widths)
    policy = 2 * (64 * inputs + 64 + 64 * 64 + 64) + 65 * blocks + 65
    count = count_config(cfg)
    assert count == 10 * sum(widths) + rest + policy
    row, = re.findall(rf'^\|.*{name}\.py.*$', (ROOT / 'docs/how-to/recipes.md').read_text(), re.M)
    assert f'| {10 * sum(widths):,} |' in row
    if 'language_model' not in cfg.model:  # the page counts with a whole BERT
        assert f'| {count / 1e6:.2f} M |' in row
