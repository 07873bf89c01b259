"""Dense configs, made small: they train and are tested, or say why they do not."""
import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from dense_task import build, config, localise, small_mask_rcnn, small_setr, upstream_of
from mmengine.dataset import Compose
from mmengine.registry import DATASETS, HOOKS, DefaultScope
from mmengine.runner import Runner
from stand_ins import pixels, write_ade20k, write_coco
from test_config_training import Snapshot, different, tensors

from mmprovpt.errors import ConfigError

pytestmark = pytest.mark.usefixtures('unformatted')


@pytest.fixture(scope='module')
def ade20k(tmp_path_factory):
    return write_ade20k(tmp_path_factory.mktemp('ade20k'))


@pytest.fixture(scope='module')
def coco(tmp_path_factory):
    return write_coco(tmp_path_factory.mktemp('coco'))


def train(cfg):
    before = {}
    runner = Runner.from_cfg(cfg)
    runner.register_hook(Snapshot(before))
    runner.train()
    assert runner.iter == 2
    names = {name for name, parameter in runner.model.named_parameters() if parameter.requires_grad}
    pool = runner.model.backbone.prompts
    prompts = {f'backbone.prompts.{name}' for name, _ in pool.named_parameters()}
    assert {name for name in names if name.startswith('backbone.')} == prompts
    moved = different(runner.model, before)
    # What stands still: labels and boxes that no image here has; statistics and the index are no parameters.
    assert 'backbone.prompts.tokens' in moved
    assert {name for name in moved if name.startswith('backbone.')} \
        <= prompts | {'backbone.prompts.block_index'}
    folder = Path(cfg.work_dir)
    log, = folder.glob('*/relocations.jsonl')
    rows = [json.loads(line) for line in log.read_text().splitlines()]
    assert len(rows) == 2 and (rows[0]['prompt'] is not None or pool.depends_on_input(1))  # rows of 0 are not idle yet
    assert all(sum(row['distribution']) == len(pool.tokens) for row in rows)
    scalars, = folder.glob('*/vis_data/scalars.json')
    scores = {}
    for row in scalars.read_text().splitlines():
        scores.update(json.loads(row))
    return names & moved, names - moved - prompts, scores


@pytest.mark.parametrize('method', ['provpt', 'provapt'])
def test_setr_trains_and_is_tested_at_one_scale_and_many(ade20k, tmp_path, call, method):
    cfg = localise(small_setr(config(f'setr_pup_vit_b_{method}_ade20k')), ade20k, tmp_path)
    if method == 'provapt':
        cfg.model.backbone.prompts.kernel_size = 1  # at the smallest scale there is one row of patches
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


@pytest.mark.parametrize('method', ['provpt', 'provapt'])
def test_mask_rcnn_trains_with_images_without_objects(coco, tmp_path, method):
    cfg = localise(small_mask_rcnn(config(f'mask_rcnn_swin_t_{method}_coco')), coco, tmp_path)
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


@pytest.mark.parametrize('method', ['frozen', 'full', 'lora'])
@pytest.mark.parametrize('task', ['setr_pup_vit_b_{}_ade20k', 'mask_rcnn_swin_t_{}_coco'])
def test_baselines(task, method, tmp_path):
    """Two steps change what the method says; what is frozen stays that of the file, and need not be saved."""
    small = small_setr if 'setr' in task else small_mask_rcnn
    published = build(small(config(task.format('full')))).backbone
    published = {f'backbone.{name}': torch.randn_like(value) * 0.1 if value.is_floating_point() else value
                 for name, value in published.state_dict().items()}
    torch.save(dict(state_dict=published), tmp_path / 'published.pth')
    cfg = small(config(task.format(method)))
    upstream_of(cfg).update(
        drop_path_rate=0., init_cfg=dict(type='Pretrained', checkpoint=str(tmp_path / 'published.pth'),
                                         **({'prefix': 'backbone.'} if 'setr' in task else {})))
    model = build(cfg)
    model.init_weights()
    before = {name: value.clone() for name, value in tensors(model).items()}
    start = {name.replace('backbone.module', 'backbone').replace('original_layer.', ''): value
             for name, value in before.items()}
    assert all(torch.equal(start[name], value) for name, value in published.items())
    batch = segmentation_batch(model, [(64, 64), (64, 64)], 3) if 'setr' in task \
        else detection_batch(model, [(64, 80)] * 2, ((0, 0, 20, 30), ))
    # Adam: in the first step the gradients of lora_down are 0, in the second very small.
    optimizer = torch.optim.Adam([value for value in model.train().parameters() if value.requires_grad], 0.001)
    for _ in range(2):
        optimizer.zero_grad()
        backward(model, batch)
        optimizer.step()
    moved = different(model, before)
    assert any('head' in name for name in moved)
    assert {name for name in moved if name.startswith('backbone.')} == {
        f'backbone.{name}' for name, _ in model.backbone.named_parameters() if method == 'full' or '.lora_' in name}
    if method == 'lora':
        saved = model.state_dict()
        assert {name for name in saved if name.startswith('backbone.')} <= moved
        fresh = build(cfg)
        fresh.load_state_dict(saved)
        assert not different(fresh, tensors(model))


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
