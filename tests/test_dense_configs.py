"""The configs of dense tasks: what they say, what they count, that they train, and what they refuse."""
import functools
import importlib.util
import json
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import published
import pytest
import timm
import torch
from mmengine.config import Config
from mmengine.dataset import Compose
from mmengine.optim import build_optim_wrapper
from mmengine.registry import DATASETS, HOOKS, MODELS, DefaultScope
from mmengine.runner import Runner
from mmengine.utils import get_installed_path
from PIL import Image
from test_configs import POLICY, Snapshot, differences
from timm.models import load_checkpoint

from mmprovpt.utils.convert_weights import convert
from mmprovpt.utils.parameters import count_config
from mmprovpt.utils.preflight import ConfigError, check_config
from mmprovpt.utils.setup import read_config, sync_bn_to_bn

ROOT = Path(__file__).parents[1]
MASK_RCNN = ('', '_amp', '_ms_crop_3x', '_amp_ms_crop_3x')
# Interval of relocation and iterations of the schedule (COCO: 7330 an epoch).
PAIRS = {f'setr_{head}_vit_{size}_{{}}_ade20k': (1600, 160000) for head in ('pup', 'naive', 'mla') for size in 'bl'}
PAIRS.update({f'mask_rcnn_swin_t_{{}}{kind}_coco': (3000, 36 * 7330) if '3x' in kind else (1000, 12 * 7330)
              for kind in MASK_RCNN})
SMALL_VIT = dict(embed_dims=24, num_layers=4, num_heads=2, feedforward_channels=96)


@pytest.fixture(autouse=True)
def unformatted(monkeypatch):
    """Formatting the configs that Runners write takes most of the time otherwise."""
    monkeypatch.setattr('yapf.yapflib.yapf_api.FormatCode', lambda text, **kwargs: (text, True))


@functools.lru_cache(None)
def parse(name):
    return Config.fromfile(ROOT / f'configs/{name}.py').to_dict()


def config(name):
    return Config(parse(name))


def build(cfg):
    sync_bn_to_bn(cfg.model)
    with DefaultScope.overwrite_default_scope(cfg.default_scope):
        return MODELS.build(cfg.model)


def test_no_config_is_missing_or_unknown():
    assert {path.stem for path in (ROOT / 'configs').glob('*.py')} \
        == {pair.format(method) for pair in PAIRS for method in ('vpt', 'provpt')}


@pytest.mark.parametrize('pair', PAIRS)
def test_twins_differ_in_relocation_only(pair):
    vpt, provpt = (parse(pair.format(method)) for method in ('vpt', 'provpt'))
    interval, iterations = PAIRS[pair]
    assert differences(vpt, provpt) == {'custom_hooks'} and 'custom_hooks' not in vpt
    assert provpt['custom_hooks'] == [dict(
        type='mmprovpt.PromptRelocationHook', interval=interval, by_epoch=False,
        pruner=dict(type='IdlenessPruner', criterion='taylor'), allocator=dict(type='PPOAllocator'))]
    schedule = provpt['train_cfg']
    assert iterations == schedule.get('max_iters', schedule.get('max_epochs', 0) * 7330)
    assert 87 <= iterations / interval <= 100  # the paper's runs have 100 periods
    assert provpt['model']['backbone']['prompts'] == dict(type='StaticPrompts', num_tokens=10, dropout=0.1)


@pytest.mark.parametrize('head', ['pup', 'naive', 'mla'])
def test_setr_is_mmsegs(head):
    """What of MMSegmentation's SETR changes, and nothing else."""
    theirs = Config.fromfile(
        f'{get_installed_path("mmseg")}/.mim/configs/setr/setr_vit-l_{head}_8xb2-160k_ade20k-512x512.py')
    ours, base = (parse(f'setr_{head}_vit_{size}_vpt_ade20k') for size in 'lb')
    assert ours['default_scope'] == theirs.default_scope == 'mmseg'
    changed = {key for key in differences(theirs, ours) if not key.startswith('model.backbone.')}
    values = {'backbone', 'in21k_pixels', 'multi_scale'}  # of _base_/setr_ade20k.py
    assert changed - values == {
        'default_hooks.classes', 'auto_scale_lr', 'tta_pipeline', 'data_preprocessor.mean', 'data_preprocessor.std',
        'model.data_preprocessor.mean', 'model.data_preprocessor.std'}
    backbone = ours['model']['backbone']
    # The same blocks feed the heads, in the same width, at the same size.
    assert tuple(backbone['out_indices']) == tuple(theirs.model.backbone.out_indices)
    assert (backbone['img_size'], ) * 2 == theirs.model.backbone.img_size
    assert backbone['interpolate_mode'] == theirs.model.backbone.interpolate_mode
    heads = {'model.neck.in_channels'} if head == 'mla' else {'model.decode_head.in_channels', 'model.auxiliary_head'}
    assert differences(ours, base) == heads | {
        'model.backbone.arch', 'model.backbone.out_indices', 'model.backbone.init_cfg.checkpoint'}
    for theirs_aux, ours_aux in zip(theirs.model.auxiliary_head, base['model']['auxiliary_head']):
        assert differences(theirs_aux, ours_aux) == (set() if head == 'mla' else {'in_channels'})


def without_scopes(node):
    """MMEngine notes where it has read 'mmdet::'."""
    if isinstance(node, dict):
        return {key: without_scopes(value) for key, value in node.items() if key != '_scope_'}
    return type(node)(map(without_scopes, node)) if isinstance(node, (list, tuple)) else node


def test_mask_rcnn_is_mmdets():
    for kind, theirs in (('', '1x'), ('_ms_crop_3x', 'ms-crop-3x'), ('_amp_ms_crop_3x', 'amp-ms-crop-3x')):
        theirs = Config.fromfile(
            f'{get_installed_path("mmdet")}/.mim/configs/swin/mask-rcnn_swin-t-p4-w7_fpn_{theirs}_coco.py')
        ours = without_scopes(parse(f'mask_rcnn_swin_t_vpt{kind}_coco'))
        assert differences(theirs, ours) == {
            'model.backbone.type', 'model.backbone.prompts', 'default_hooks.classes'}
        assert ours['val_evaluator']['metric'] == ours['test_evaluator']['metric'] == ['bbox', 'segm']
    assert differences(parse('mask_rcnn_swin_t_vpt_coco'), parse('mask_rcnn_swin_t_vpt_amp_coco')) \
        == {'optim_wrapper.type'}


@pytest.mark.parametrize('distribution', ['mmsegmentation', 'onedl_mmsegmentation', None])
def test_mmseg_is_found_by_its_module(distribution, tmp_path, monkeypatch):
    """Whatever its distribution is called: here is another mmseg, in front of the installed one."""
    package = tmp_path / 'mmseg'
    (package / '.mim/configs/setr').mkdir(parents=True)
    (package / '__init__.py').touch()
    (package / '.mim/configs/setr/setr_vit-l_pup_8xb2-160k_ade20k-512x512.py').write_text('another = dict(lr=7)\n')
    if distribution:
        info = tmp_path / f'{distribution}-9.9.9.dist-info'
        info.mkdir()
        (info / 'METADATA').write_text(f'Metadata-Version: 2.1\nName: {distribution}\nVersion: 9.9.9\n')
        (info / 'top_level.txt').write_text('mmseg\n')
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, 'mmseg', raising=False)
    assert Config.fromfile(ROOT / 'configs/setr_pup_vit_l_vpt_ade20k.py').another.lr == 7


@pytest.mark.parametrize('package, name', [
    ('mmseg', 'setr_pup_vit_b_provpt_ade20k'), ('mmdet', 'mask_rcnn_swin_t_provpt_coco')])
def test_without_the_codebase(package, name, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)  # find_spec then finds none
    monkeypatch.setattr('mmengine.config.config.is_installed', lambda given: given != package)
    with pytest.raises(ConfigError, match=f'{name}.py needs a package that is not installed: .*{package}'):
        read_config(ROOT / f'configs/{name}.py')


def conv_bn(kernel, inputs, outputs):
    return kernel**2 * inputs * outputs + 2 * outputs


def up_head(width, convs, kernel):
    inputs = [width] + [256] * (convs - 1)
    return 2 * width + sum(conv_bn(kernel, i, 256) for i in inputs) + 257 * 150


def setr_heads(head, width):
    if head == 'pup':
        return up_head(width, 4, 3) + 3 * up_head(width, 2, 3)
    if head == 'naive':
        return up_head(width, 1, 1) + 3 * up_head(width, 2, 1)
    neck = 4 * (2 * width + conv_bn(1, width, 256) + conv_bn(3, 256, 256))
    decode = 4 * (conv_bn(3, 256, 128) + conv_bn(3, 128, 128)) + 513 * 150
    return neck + decode + 4 * 257 * 150


@pytest.mark.parametrize('size, width, blocks', [('b', 768, 12), ('l', 1024, 24)])
@pytest.mark.parametrize('head', ['pup', 'naive', 'mla'])
def test_parameters_of_setr(head, size, width, blocks):
    expected = setr_heads(head, width) + 10 * blocks * width
    policy = 2 * (3 * blocks * 64 + 64 + 64 * 64 + 64) + 65 * blocks + 65
    assert blocks != 12 or policy == POLICY
    assert count_config(config(f'setr_{head}_vit_{size}_vpt_ade20k')) == expected
    assert count_config(config(f'setr_{head}_vit_{size}_provpt_ade20k')) == expected + policy


def test_parameters_of_mask_rcnn():
    widths = [96] * 2 + [192] * 2 + [384] * 6 + [768] * 2
    conv = 9 * 256 * 256 + 256
    fpn = sum(256 * (width + 1) for width in (96, 192, 384, 768)) + 4 * conv
    rpn = conv + 257 * 3 * (1 + 4)
    boxes = (256 * 49 + 1) * 1024 + 1025 * 1024 + 1025 * (81 + 4 * 80)
    masks = 4 * conv + 4 * 256 * 256 + 256 + 257 * 80
    expected = 10 * sum(widths) + fpn + rpn + boxes + masks
    for kind in MASK_RCNN:
        assert count_config(config(f'mask_rcnn_swin_t_vpt{kind}_coco')) == expected
        assert count_config(config(f'mask_rcnn_swin_t_provpt{kind}_coco')) == expected + POLICY


@torch.no_grad()
def test_setr_sees_timms_features(tmp_path):
    """From a file in the layout of ViT-B_16.npz, at four times the pixels of its pre-training."""
    small = dict(embed_dim=24, depth=4, num_heads=2, num_classes=0)
    published.jax(published.randomise(timm.create_model('vit_base_patch16_224', img_size=48, **small)),
                  str(tmp_path / 'x.npz'))
    convert(str(tmp_path / 'x.npz'), str(tmp_path / 'x.pth'))
    cfg = small_setr(config('setr_pup_vit_b_vpt_ade20k'))
    cfg.model.backbone.update(
        img_size=96, prompts=dict(type='StaticPrompts', num_tokens=0),
        init_cfg=dict(parse('setr_pup_vit_b_vpt_ade20k')['model']['backbone']['init_cfg'],
                      checkpoint=str(tmp_path / 'x.pth')))
    model = build(cfg)
    model.init_weights()
    model.eval()
    reference = timm.create_model('vit_base_patch16_224', img_size=96, **small)
    load_checkpoint(reference, str(tmp_path / 'x.npz'))
    pixels = torch.randint(0, 256, (2, 3, 96, 96), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    inputs = model.data_preprocessor(dict(inputs=list(pixels.flip(1))))['inputs']  # BGR, as files are read
    ours = model.extract_feat(inputs)
    theirs = reference.eval().forward_intermediates(
        pixels / 127.5 - 1, indices=4, norm=False, intermediates_only=True)
    assert len(ours) == 4 and ours[0].shape == (2, 24, 6, 6)
    for a, b in zip(ours, theirs):
        torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-4)


def small_setr(cfg):
    cfg.model.backbone.update(arch=SMALL_VIT, out_indices=[0, 1, 2, 3], img_size=64, init_cfg=None)
    if 'neck' in cfg.model:
        cfg.model.neck.in_channels = [24] * 4
    else:
        for head in [cfg.model.decode_head, *cfg.model.auxiliary_head]:
            head.update(in_channels=24, channels=8)
    cfg.model.data_preprocessor.size = (64, 64)
    cfg.model.test_cfg.update(crop_size=(64, 64), stride=(48, 48))
    for transform in cfg.train_dataloader.dataset.pipeline:
        transform.update(dict(RandomResize=dict(scale=(256, 64)), RandomCrop=dict(crop_size=(64, 64))).get(
            transform.type, {}))
    for phase in ('val', 'test'):
        cfg[f'{phase}_dataloader'].dataset.pipeline[1].scale = (256, 64)
    for resize in cfg.tta_pipeline[1].transforms[0]:
        resize.scale = tuple(side // 16 for side in resize.scale)
    return cfg


def small_mask_rcnn(cfg):
    cfg.model.backbone.update(embed_dims=12, depths=[2, 1, 1, 1], init_cfg=None, convert_weights=False)
    cfg.model.neck.update(in_channels=[12, 24, 48, 96], out_channels=16)
    cfg.model.rpn_head.update(in_channels=16, feat_channels=16)
    roi = cfg.model.roi_head
    roi.bbox_roi_extractor.out_channels = roi.mask_roi_extractor.out_channels = 16
    roi.bbox_head.update(in_channels=16, fc_out_channels=32)
    roi.mask_head.update(in_channels=16, conv_out_channels=16)
    cfg.model.train_cfg.rpn_proposal.update(nms_pre=50, max_per_img=20)
    cfg.model.test_cfg.rpn.update(nms_pre=50, max_per_img=20)
    cfg.model.test_cfg.rcnn.update(score_thr=0., max_per_img=5)  # an untrained head is sure of nothing
    for phase in ('train', 'val', 'test'):
        for transform in cfg[f'{phase}_dataloader'].dataset.pipeline:
            if transform.type == 'Resize':
                transform.scale = (100, 64)
    return cfg


def pixels(height, width, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


@pytest.fixture(scope='module')
def ade20k(tmp_path_factory):
    """Images with labels 0 (other), 1 and 2; one of the two for training is labelled 'other' throughout."""
    root = tmp_path_factory.mktemp('ade')
    for split, count in (('training', 2), ('validation', 1)):
        for number in range(count):
            for kind in ('images', 'annotations'):
                (root / kind / split).mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels(70, 90, number)).save(root / f'images/{split}/{number}.jpg')
            labels = np.zeros((70, 90), np.uint8)
            if split == 'validation' or number:
                labels[:40, 10:], labels[40:] = 1, 2
            Image.fromarray(labels).save(root / f'annotations/{split}/{number}.png')
    return root


@pytest.fixture(scope='module')
def coco(tmp_path_factory):
    """Three images of 64 x 80 px for each split, the last without a single object."""
    import mmdet.datasets
    root = tmp_path_factory.mktemp('coco')
    names = mmdet.datasets.CocoDataset.METAINFO['classes']
    images = [dict(id=number, file_name=f'{number}.jpg', height=64, width=80) for number in range(3)]
    boxes = [(0, 3, (4, 4, 30, 30)), (0, 7, (40, 10, 30, 40)), (1, 3, (10, 20, 50, 40))]
    annotations = [
        dict(id=i, image_id=image, category_id=category, bbox=[x, y, w, h], area=w * h, iscrowd=0,
             segmentation=[[x, y, x + w, y, x + w, y + h, x, y + h]])
        for i, (image, category, (x, y, w, h)) in enumerate(boxes, 1)]
    categories = [dict(id=number, name=name) for number, name in enumerate(names)]
    (root / 'annotations').mkdir()
    for split in ('train2017', 'val2017'):
        (root / split).mkdir()
        for image in images:
            Image.fromarray(pixels(64, 80, image['id'])).save(root / split / image['file_name'])
        (root / f'annotations/instances_{split}.json').write_text(
            json.dumps(dict(images=images, annotations=annotations, categories=categories)))
    return root


def localise(cfg, root, folder):
    """Data in a folder, in this process, and two iterations with a relocation after each."""
    for phase in ('train', 'val', 'test'):
        cfg[f'{phase}_dataloader'].update(num_workers=0, persistent_workers=False)
        cfg[f'{phase}_dataloader'].dataset.data_root = str(root)
    for evaluator in (cfg.val_evaluator, cfg.test_evaluator):
        if 'ann_file' in evaluator:
            evaluator.ann_file = str(root / 'annotations/instances_val2017.json')
    cfg.train_dataloader.batch_size = 2
    cfg.custom_hooks[0].update(interval=1, draw_interval=0)
    if 'max_iters' in cfg.train_cfg:
        cfg.train_cfg.update(max_iters=2, val_interval=2)
    else:
        cfg.train_cfg.update(max_epochs=1, val_interval=1)
        cfg.train_dataloader.dataset.filter_cfg.update(filter_empty_gt=False)
    cfg.work_dir, cfg.experiment_name = str(folder), f'dense_{folder.name}'
    sync_bn_to_bn(cfg.model)
    return cfg


def changed(runner, before):
    after = runner.model.state_dict()
    return {name for name in after if not torch.equal(after[name], before[name])}


def train(cfg):
    before = {}
    runner = Runner.from_cfg(cfg)
    runner.register_hook(Snapshot(before))
    runner.train()
    assert runner.iter == 2
    names = {name for name, parameter in runner.model.named_parameters() if parameter.requires_grad}
    assert [name for name in names if name.startswith('backbone.')] == ['backbone.prompts.tokens']
    different = changed(runner, before)
    # What stands still: labels and boxes that no image here has; statistics and the index are no parameters.
    assert 'backbone.prompts.tokens' in different
    assert {name for name in different if name.startswith('backbone.')} \
        <= {'backbone.prompts.tokens', 'backbone.prompts.block_index'}
    folder = Path(cfg.work_dir)
    log, = folder.glob('*/relocations.jsonl')
    rows = [json.loads(line) for line in log.read_text().splitlines()]
    assert len(rows) == 2 and all(sum(row['distribution']) == runner.model.backbone.prompts.distribution.sum()
                                  for row in rows)
    scalars, = folder.glob('*/vis_data/scalars.json')
    scores = {}
    for row in scalars.read_text().splitlines():
        scores.update(json.loads(row))
    return names & different, names - different, scores


@pytest.fixture
def call(monkeypatch):

    def call(tool, *args):
        spec = importlib.util.spec_from_file_location(f'tools_{tool}', ROOT / f'tools/{tool}.py')
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        monkeypatch.setattr(sys, 'argv', [tool, *map(str, args)])
        module.main()

    return call


def test_setr_trains_and_is_tested_at_one_scale_and_many(ade20k, tmp_path, call):
    cfg = localise(small_setr(config('setr_pup_vit_b_provpt_ade20k')), ade20k, tmp_path)
    moved, still, scores = train(cfg)
    heads = {name.split('.')[0] for name in moved}
    assert heads == {'backbone', 'decode_head', 'auxiliary_head'} and not still
    assert 0 <= scores['mIoU'] <= 100
    cfg.dump(str(tmp_path / 'config.py'))
    results = {}
    for scales in ([], ['--tta']):
        folder = tmp_path / f'test{len(scales)}'
        call('test', tmp_path / 'config.py', tmp_path / 'iter_2.pth', '--work-dir', folder, *scales,
             '--cfg-options', f'experiment_name={folder}')
        path, = folder.glob('*/*.json')
        results[len(scales)] = json.loads(path.read_text())
    assert results[0]['mIoU'] == pytest.approx(scores['mIoU'])
    assert 0 <= results[1]['mIoU'] <= 100


def test_multi_scale_is_ratios_of_single_scale_and_flip(ade20k):
    import mmseg.datasets  # noqa: F401  registers the transforms
    cfg = config('setr_mla_vit_l_provpt_ade20k')
    data = dict(img_path=str(ade20k / 'images/validation/0.jpg'), reduce_zero_label=True, seg_fields=[],
                seg_map_path=str(ade20k / 'annotations/validation/0.png'), label_map=None)
    with DefaultScope.overwrite_default_scope('mmseg'):
        many = Compose(cfg.tta_pipeline)(dict(data))
        one = Compose(cfg.test_dataloader.dataset.pipeline)(dict(data))
    shapes = [tuple(image.shape[1:]) for image in many['inputs']]
    assert tuple(one['inputs'].shape[1:]) == (512, 658)
    assert shapes[4] == shapes[5] == (512, 658)
    assert [shape[0] / 512 for shape in shapes[::2]] == [0.5, 0.75, 1.0, 1.25, 1.5, 1.75]
    assert shapes[::2] == shapes[1::2]
    assert [sample.flip for sample in many['data_samples']] == [False, True] * 6
    for sample in [*many['data_samples'], one['data_samples']]:  # the labels are those of the file, less one
        assert sample.gt_sem_seg.data.shape == (1, 70, 90)
        assert set(sample.gt_sem_seg.data.unique().tolist()) == {0, 1, 255}
    torch.testing.assert_close(many['inputs'][5], many['inputs'][4].flip(-1))


@pytest.mark.parametrize('options, rate', [
    ({}, 0.001), ({'optim_wrapper.paramwise_cfg.custom_keys.prompts.lr_mult': 100}, 0.1)])  # as docs/dense.md says
def test_learning_rates_of_setr(options, rate):
    cfg = small_setr(config('setr_pup_vit_b_provpt_ade20k'))
    cfg.merge_from_dict(options)
    model = build(cfg)
    names = {id(parameter): name.split('.')[0] for name, parameter in model.named_parameters()}
    rates = {(names[id(group['params'][0])], group['lr']) for group in
             build_optim_wrapper(model, cfg.optim_wrapper).param_groups if group['params'][0].requires_grad}
    assert rates == {('backbone', rate), ('decode_head', 0.01), ('auxiliary_head', 0.01)}


def test_missing_data_and_weights_are_named(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError) as error:
        check_config(config('setr_pup_vit_b_provpt_ade20k'))
    message = str(error.value)
    for line in ("train_dataloader.dataset.data_prefix.img_path = 'images/training': no such directory",
                 f'looked for: {tmp_path}/data/ade/ADEChallengeData2016/annotations/validation',
                 'what to do: put ADE20k there (docs/dense.md), or override data_root with --cfg-options',
                 "model.backbone.init_cfg.checkpoint = 'checkpoints/vit_b16_in21k.pth': no such file",
                 'what to do: get it as docs/weights.md says'):
        assert line in message


def test_mask_rcnn_trains_with_images_without_objects(coco, tmp_path):
    cfg = localise(small_mask_rcnn(config('mask_rcnn_swin_t_provpt_coco')), coco, tmp_path)
    moved, still, scores = train(cfg)
    assert {'.'.join(name.split('.')[:2]) for name in moved} >= {
        'backbone.prompts', 'neck.lateral_convs', 'neck.fpn_convs', 'rpn_head.rpn_conv', 'roi_head.bbox_head'}
    assert all(name.startswith('roi_head.') for name in still)
    assert {'coco/bbox_mAP', 'coco/segm_mAP'} <= set(scores)


def detection_batch(model, sizes, boxes=()):
    """Images of these heights and widths; in each the boxes, (4,) in pixels, of class 0, filled."""
    from mmdet.structures import DetDataSample
    from mmdet.structures.mask import BitmapMasks
    from mmengine.structures import InstanceData
    samples = []
    for height, width in sizes:
        masks = np.zeros((len(boxes), height, width), np.uint8)
        for mask, (x, y, right, bottom) in zip(masks, boxes):
            mask[y:bottom, x:right] = 1
        meta = dict(img_shape=(height, width), ori_shape=(height, width), scale_factor=(1., 1.), img_id=0)
        samples.append(DetDataSample(metainfo=meta, gt_instances=InstanceData(
            bboxes=torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4), masks=BitmapMasks(masks, height, width),
            labels=torch.zeros(len(boxes), dtype=torch.int64))))
    inputs = [torch.from_numpy(pixels(*size)).permute(2, 0, 1) for size in sizes]
    return model.data_preprocessor(dict(inputs=inputs, data_samples=samples), True)


def backward(model, batch):
    loss, values = model.parse_losses(model.loss(batch['inputs'], batch['data_samples']))
    loss.backward()
    assert torch.isfinite(loss)
    assert all(parameter.grad is not None for parameter in model.parameters() if parameter.requires_grad), \
        'DDP would wait for them'
    return values


@pytest.fixture(scope='module')
def mask_rcnn():
    return build(small_mask_rcnn(config('mask_rcnn_swin_t_provpt_coco'))).train()


@pytest.mark.parametrize('sizes', [[(64, 80), (40, 90)], [(20, 24), (27, 9)], [(3, 2), (1, 1)]],
                         ids=['windows', 'below a window', 'below a patch'])
@pytest.mark.parametrize('boxes', [(), ((0, 0, 2, 1), )], ids=['nothing', 'an object'])
def test_detection_of_small_and_empty_images(sizes, boxes, mask_rcnn):
    mask_rcnn.zero_grad()
    values = backward(mask_rcnn, detection_batch(mask_rcnn, sizes, boxes))
    assert (values['loss_rpn_bbox'] > 0) <= bool(boxes) and (boxes or values['loss_mask'] == 0)
    # Background is learned from images without objects as well.
    assert values['loss_rpn_cls'] > 0 and mask_rcnn.backbone.prompts.tokens.grad.abs().sum() > 0
    mask_rcnn.eval()
    with torch.no_grad():
        batch = detection_batch(mask_rcnn, sizes)
        results = mask_rcnn.predict(batch['inputs'], batch['data_samples'])
    mask_rcnn.train()
    for size, result in zip(sizes, results):
        assert result.pred_instances.masks.shape[1:] == size


def segmentation_batch(model, sizes, label):
    from mmengine.structures import PixelData
    from mmseg.structures import SegDataSample
    samples = [SegDataSample(
        metainfo=dict(img_shape=size, ori_shape=size),
        gt_sem_seg=PixelData(data=torch.full((1, *size), label, dtype=torch.int64))) for size in sizes]
    inputs = [torch.from_numpy(pixels(*size)).permute(2, 0, 1) for size in sizes]
    return model.data_preprocessor(dict(inputs=inputs, data_samples=samples), model.training)


@pytest.mark.parametrize('head', ['pup', 'naive', 'mla'])
def test_segmentation_of_small_and_empty_images(head):
    cfg = small_setr(config(f'setr_{head}_vit_b_provpt_ade20k'))
    for part in [cfg.model.decode_head, *cfg.model.auxiliary_head]:
        part.num_classes = 5
    model = build(cfg).train()
    # Labels that are all ignored (255) teach nothing, and break nothing.
    for label, learns in ((255, False), (3, True)):
        model.zero_grad()
        backward(model, segmentation_batch(model, [(64, 64), (20, 7)], label))
        assert bool(model.backbone.prompts.tokens.grad.abs().sum() > 0) == learns
    model.eval()
    for size in ((7, 5), (16, 100), (70, 90)):  # below a patch, below the crop in one direction, above it
        batch = segmentation_batch(model, [size], 3)
        with torch.no_grad():
            result, = model.predict(batch['inputs'], batch['data_samples'])
        assert result.pred_sem_seg.data.shape == (1, *size) and torch.isfinite(result.seg_logits.data).all()


DETECTION = [
    ({'model.roi_head.mask_head.num_classes': 3},
     r'model.roi_head.mask_head.num_classes is 3, but train_dataloader.dataset has 80 classes: person, bicycle, .*, …'),
    ({'train_dataloader.dataset.metainfo': dict(classes=('person', 'car'))},
     r'model.roi_head.bbox_head.num_classes is 80, but train_dataloader.dataset has 2 classes: person, car$'),
    ({'model.roi_head.bbox_head.num_classes': 2, 'model.roi_head.mask_head.num_classes': 2,
      'train_dataloader.dataset.metainfo': dict(classes=('person', 'Car'))},
     r'train_dataloader.dataset: .*instances_train2017.json has categories for only 1 of the 2 classes: person, Car'),
    ({'train_dataloader.dataset.metainfo': dict(classes='person')},
     r"CocoDataset has 'person' for names of its classes: .* with one class \('first', \)"),
    ({'val_dataloader.dataset.metainfo': dict(classes=('person', 'car'))},
     r'bbox_head.num_classes is 80, but val_dataloader.dataset has 2 classes'),
    ({'train_dataloader.dataset.metainfo': dict(classes=[f'{number}' for number in range(80)])},
     r'train_dataloader.dataset: .*instances_train2017.json has categories for only 0 of the 80 classes')]
SEGMENTATION = [
    ({'model.decode_head.num_classes': 151}, 'model.decode_head.num_classes is 151, but train_dataloader.dataset has '
     '150 classes: wall, building, .*'),
    ({'model.auxiliary_head.1.num_classes': 3}, 'model.auxiliary_head.1.num_classes is 3, but train_dataloader'),
    ({'val_dataloader.dataset.metainfo': dict(classes=('wall', 'sky'))},
     'decode_head.num_classes is 150, but val_dataloader.dataset has 2 classes: wall, sky')]
CASES = dict(detection=(DETECTION, small_mask_rcnn, 'mask_rcnn_swin_t_provpt_coco', 'coco'),
             segmentation=(SEGMENTATION, small_setr, 'setr_pup_vit_b_provpt_ade20k', 'ade20k'))


@pytest.mark.parametrize('task, number', [(task, i) for task, case in CASES.items() for i in range(len(case[0]))])
def test_classes_that_do_not_fit(task, number, tmp_path, request):
    cases, small, name, root = CASES[task]
    cfg = localise(small(config(name)), request.getfixturevalue(root), tmp_path)
    change, message = cases[number]
    cfg.merge_from_dict(change)
    hook = HOOKS.build(cfg.default_hooks.classes)
    with pytest.raises(ConfigError, match=message):
        hook.before_train(runner_of(cfg))


@pytest.mark.parametrize('task', CASES)
def test_classes_that_fit(task, tmp_path, request):
    _, small, name, root = CASES[task]
    cfg = localise(small(config(name)), request.getfixturevalue(root), tmp_path)
    inner = cfg.train_dataloader.dataset
    cfg.train_dataloader.dataset = dict(
        type='RepeatDataset', times=2, dataset=dict(type='ConcatDataset', datasets=[inner]))
    hook = HOOKS.build(cfg.default_hooks.classes)
    runner = runner_of(cfg)
    hook.before_train(runner)
    hook.before_test(runner)
    if task == 'detection':  # names that the file does not have, in a wrapper
        inner.metainfo = dict(classes=[f'{number}' for number in range(80)])
        with pytest.raises(ConfigError, match='has categories for only 0 of the 80 classes'):
            hook.before_train(runner_of(cfg))


def runner_of(cfg):
    """What the hook reads of a Runner, which takes seconds to build."""
    with DefaultScope.overwrite_default_scope(cfg.default_scope):
        loaders = {f'{phase}_dataloader': SimpleNamespace(dataset=DATASETS.build(cfg[f'{phase}_dataloader'].dataset))
                   for phase in ('train', 'val', 'test')}
    return SimpleNamespace(model=build(cfg), val_loop=object(), **loaders)


@pytest.mark.parametrize('task', CASES)
def test_classes_that_do_not_fit_end_training_before_it_begins(task, tmp_path, request, call):
    cases, small, name, root = CASES[task]
    cfg = localise(small(config(name)), request.getfixturevalue(root), tmp_path)
    cfg.merge_from_dict(cases[-1][0])
    cfg.dump(str(tmp_path / 'config.py'))
    with pytest.raises(SystemExit, match=f'error: .*{cases[-1][1]}'):
        call('train', tmp_path / 'config.py', '--cfg-options', f'experiment_name=refuse_{task}')
    assert not list(tmp_path.glob('*.pth')) and not list(tmp_path.glob('*/relocations.jsonl'))


def test_data_sets_know_their_classes():
    for name, count in (('setr_pup_vit_b_vpt_ade20k', 150), ('mask_rcnn_swin_t_vpt_coco', 80)):
        cfg = config(name)
        with DefaultScope.overwrite_default_scope(cfg.default_scope):
            dataset = DATASETS.build(dict(cfg.train_dataloader.dataset, lazy_init=True))
        assert len(dataset.metainfo['classes']) == count
