# SPDX-License-Identifier: Apache-2.0
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import miniature
import numpy as np
import pytest
import torch
from miniature import build_miniature, compose_scene, find_damage
from mmengine.config import Config, ConfigDict
from PIL import Image

coco_mask = pytest.importorskip('pycocotools.mask')
pytest.importorskip('sklearn')

ROOT = Path(__file__).resolve().parents[2]
CHECKPOINTS = {name: ROOT / f'configs/demo/{name}_mini_digits.pth' for name in ('swin', 'vit')}
TINY = dict(num_train=6, num_val=3, size=(96, 80), seed=3)


@pytest.fixture(scope='module')
def tiny(tmp_path_factory):
    root = tmp_path_factory.mktemp('miniature') / 'tiny'
    assert build_miniature(root, **TINY)
    return root


def read_bytes(root):
    return {path.relative_to(root): path.read_bytes() for path in root.rglob('*') if path.is_file()}


@pytest.mark.parametrize('split, count', [('train', 6), ('val', 3)])
def test_annotations_agree_with_masks(tiny, split, count):
    from pycocotools.coco import COCO
    coco = COCO(tiny / 'annotations' / f'instances_{split}.json')
    assert len(coco.imgs) == count
    assert [(c['id'], c['name']) for c in coco.cats.values()] == [(i + 1, str(i)) for i in range(10)]
    dataset = coco.dataset
    for group in ('images', 'annotations'):
        ids = [entry['id'] for entry in dataset[group]]
        assert len(set(ids)) == len(ids) == len(getattr(coco, dict(images='imgs', annotations='anns')[group]))
    for image in dataset['images']:
        with Image.open(tiny / split / image['file_name']) as jpeg:
            assert jpeg.format == 'JPEG'
            assert jpeg.size == (image['width'], image['height']) == TINY['size']
        annotations = coco.imgToAnns[image['id']]
        assert annotations
        masks = np.stack([coco.annToMask(annotation) for annotation in annotations])
        assert masks.shape[1:] == (image['height'], image['width'])
        assert masks.sum(0).max() == 1  # what a later digit hides belongs to it alone
        for annotation, mask in zip(annotations, masks):
            assert annotation['iscrowd'] == 0
            assert annotation['category_id'] in range(1, 11)
            assert annotation['area'] == mask.sum() > 50
            rows, columns = mask.any(1).nonzero()[0], mask.any(0).nonzero()[0]
            assert annotation['bbox'] == [columns[0], rows[0], np.ptp(columns) + 1, np.ptp(rows) + 1]


@pytest.mark.parametrize('split, folder', [('train', 'training'), ('val', 'validation')])
def test_label_maps_agree_with_annotations(tiny, split, folder):
    """ADE20k's layout; digits are where COCO's masks are, and only there."""
    from pycocotools.coco import COCO
    coco = COCO(tiny / 'annotations' / f'instances_{split}.json')
    names = sorted(image['file_name'] for image in coco.dataset['images'])
    assert sorted(os.listdir(tiny / 'images' / folder)) == names
    assert sorted(os.listdir(tiny / 'annotations' / folder)) == [name.replace('jpg', 'png') for name in names]
    regions = set()
    for image in coco.dataset['images']:
        name = image['file_name']
        assert (tiny / 'images' / folder / name).read_bytes() == (tiny / split / name).read_bytes()
        with Image.open(tiny / 'annotations' / folder / name.replace('jpg', 'png')) as png:
            assert png.format == 'PNG' and png.mode == 'L'
            label_map = np.array(png)
        expected = np.zeros((image['height'], image['width']), int)
        for annotation in coco.imgToAnns[image['id']]:
            digit = coco.cats[annotation['category_id']]['name']
            expected[coco.annToMask(annotation) == 1] = 1 + miniature.LABELS.index(digit)
        np.testing.assert_array_equal(np.where(label_map > len(miniature.REGIONS), label_map, 0), expected)
        regions |= set(np.unique(label_map[expected == 0]))
    assert regions <= {0, 1, 2, 3} and regions & {1, 2, 3}


def test_regions_are_what_they_are_called():
    """Sky is bright and bluish, trees are dark, leaves dark and bluish, by the photographs' own pixels."""
    counts = {}
    for split in miniature.SPLITS:
        for photo, regions in zip(miniature.load_backgrounds(split), miniature.load_regions(split)):
            assert regions.shape == photo.shape[:2] and regions.dtype == np.uint8
            for value in np.unique(regions)[1:]:
                pixels = photo[regions == value].astype(int)
                name = miniature.REGIONS[value - 1]
                counts[split, name] = len(pixels)
                red, green, blue = pixels.mean(0)
                assert dict(sky=blue > red > 150, trees=blue < green < 130, leaves=red < 40 < blue)[name]
    assert set(counts) == {(split, name) for split in miniature.SPLITS for name in miniature.REGIONS}
    assert min(counts.values()) > 20_000
    pagoda, flower = (regions[180:230, 200:260] for regions in miniature.load_regions('train'))
    assert not pagoda.any() and not flower.any()


def test_scene_is_cropped_and_mirrored_with_its_labels():
    """Borders of regions are where the image has its edges."""
    rng = np.random.default_rng(2)
    for _ in range(20):
        scene = compose_scene(rng, 'train', num_digits=(1, 1))
        assert scene.label_map.shape == scene.image.shape[:2] and scene.label_map.dtype == np.uint8
        sky, trees = (scene.image[scene.label_map == value].astype(int) for value in (1, 2))
        if len(sky) and len(trees):
            assert (sky[:, 2] > 125).mean() > 0.97 and (trees[:, 2] < 165).mean() > 0.9


def test_image_folder(tiny):
    for split, count in (('train', 48), ('val', 24)):
        paths = sorted((tiny / 'digits' / split).glob('*/*.jpg'), key=lambda path: path.name)
        assert sorted(os.listdir(tiny / 'digits' / split)) == sorted(miniature.CLASSES)
        assert [path.stem for path in paths] == [f'{number + 1:06d}' for number in range(count)]
        rng = np.random.default_rng([TINY['seed'], miniature.SPLITS.index(split), 4, 1])
        scene = compose_scene(rng, split, (56, 56), (1, 1), (28, 52))
        label, = scene.labels
        assert paths[4].parent.name == miniature.CLASSES[label]
        with Image.open(paths[4]) as jpeg:
            assert np.abs(np.array(jpeg).astype(int) - scene.image).mean() < 6


def test_digit_has_one_colour_within_its_mask():
    scene = compose_scene(np.random.default_rng(1), 'train')
    for mask in scene.masks:
        assert len(np.unique(scene.image[mask], axis=0)) == 1


def test_digits_stay_visible_and_fit():
    rng = np.random.default_rng(0)
    for _ in range(30):
        scene = compose_scene(rng, 'val', size=(70, 62), num_digits=(4, 8))
        assert scene.image.shape == (62, 70, 3) and scene.image.dtype == np.uint8
        assert 1 <= len(scene.masks) == len(scene.labels) <= 8
        assert scene.masks.sum((1, 2)).min() > 50
    with pytest.raises(ValueError, match='at most 40 px'):
        compose_scene(rng, 'val', size=(80, 40))
    with pytest.raises(ValueError, match="'test'"):
        compose_scene(rng, 'test')


def test_splits_share_neither_digits_nor_photographs():
    digits = {split: miniature.load_digit_images(split) for split in miniature.SPLITS}
    assert sum(len(labels) for _, labels in digits.values()) == 1797
    train, val = ({grid.tobytes() for grid in grids} for grids, _ in digits.values())
    assert not train & val
    for _, labels in digits.values():
        assert set(labels.tolist()) == set(range(10))
    widths = [[photo.shape[1] for photo in miniature.load_backgrounds(split)] for split in miniature.SPLITS]
    assert widths == [[440, 440], [200, 200]]


def test_same_bytes_each_time(tiny, tmp_path):
    assert build_miniature(tmp_path / 'again', **TINY)
    assert read_bytes(tmp_path / 'again') == read_bytes(tiny)
    more = dict(TINY, num_train=7)
    assert build_miniature(tmp_path / 'more', **more)
    assert (tmp_path / 'more/train/000006.jpg').read_bytes() == (tiny / 'train/000006.jpg').read_bytes()


def test_complete_data_is_left_alone(tiny):
    before = {path: path.stat().st_mtime_ns for path in tiny.rglob('*')}
    start = time.perf_counter()
    assert not build_miniature(tiny, **TINY)
    assert time.perf_counter() - start < 0.5
    assert {path: path.stat().st_mtime_ns for path in tiny.rglob('*')} == before


@pytest.mark.parametrize('harm', ['missing image', 'changed image', 'changed labels', 'missing digit',
                                  'cut annotations', 'cut manifest', 'other seed', 'older version'])
def test_damage_is_named_and_repaired(tiny, tmp_path, harm):
    root = tmp_path / 'data'
    build_miniature(root, **(dict(TINY, seed=4) if harm == 'other seed' else TINY))
    assert find_damage(root) == []
    if harm == 'missing image':
        (root / 'train/000002.jpg').unlink()
        assert find_damage(root) == [f'{root}/train/000002.jpg is missing']
    elif harm == 'changed image':
        (root / 'val/000001.jpg').write_bytes(b'\xff\xd8')
        assert find_damage(root) == [f'{root}/val/000001.jpg is not as it was written']
    elif harm == 'changed labels':
        path = root / 'annotations/validation/000002.png'
        Image.fromarray(np.array(Image.open(path)) + np.uint8(1)).save(path)
        assert find_damage(root) == [f'{path} is not as it was written']
    elif harm == 'missing digit':
        path = next((root / 'digits/val').glob('*/000003.jpg'))
        path.unlink()
        assert find_damage(root) == [f'{path} is missing']
    elif harm == 'older version':
        manifest = json.loads((root / 'miniature.json').read_text())
        manifest['parameters']['version'] -= 1
        (root / 'miniature.json').write_text(json.dumps(manifest))
    elif harm == 'cut annotations':
        os.truncate(root / 'annotations/instances_val.json', 100)
        assert find_damage(root) == [f'{root}/annotations/instances_val.json is not as it was written']
    elif harm == 'cut manifest':
        os.truncate(root / 'miniature.json', 100)
        assert 'cannot be read' in find_damage(root)[0]
    assert build_miniature(root, **TINY)
    assert read_bytes(root) == read_bytes(tiny)
    assert os.listdir(tmp_path) == ['data']


def test_interrupted_build_leaves_nothing(tmp_path):

    def interrupt(done, total):
        assert total == 9
        if done == 7:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build_miniature(tmp_path / 'data', **TINY, progress=interrupt)
    assert os.listdir(tmp_path) == []


def test_foreign_directory_is_not_replaced(tmp_path):
    (tmp_path / 'mine').mkdir()
    (tmp_path / 'mine/thesis.tex').write_text('precious')
    with pytest.raises(FileExistsError, match='no miniature data set'):
        build_miniature(tmp_path / 'mine', **TINY)
    assert (tmp_path / 'mine/thesis.tex').read_text() == 'precious'
    (tmp_path / 'empty').mkdir()
    assert build_miniature(tmp_path / 'empty', **TINY)
    with pytest.raises(ValueError, match='at least one image'):
        build_miniature(tmp_path / 'none', num_train=0)


def test_two_builds_at_once_agree(tiny, tmp_path):

    def other_finishes_first(done, total):
        if done == total:
            build_miniature(tmp_path / 'data', **TINY)

    build_miniature(tmp_path / 'data', **TINY, progress=other_finishes_first)
    assert read_bytes(tmp_path / 'data') == read_bytes(tiny)
    assert os.listdir(tmp_path) == ['data']


def test_command(tiny, tmp_path):
    command = [sys.executable, ROOT / 'tools/dataset_converters/miniature_coco.py', '--out', tmp_path / 'data']
    command += ['--num-train', '2', '--num-val', '1']
    outputs = [subprocess.run(command, capture_output=True, text=True, check=True).stdout for _ in range(2)]
    assert 'written' in outputs[0] and 'nothing to do' in outputs[1]
    assert len(json.loads((tmp_path / 'data/annotations/instances_train.json').read_text())['images']) == 2
    command[3] = ROOT / 'tools'
    refused = subprocess.run(command, capture_output=True, text=True)
    assert refused.returncode != 0
    assert 'no miniature data set' in refused.stderr and 'Traceback' not in refused.stderr


def test_mmdet_reads_it(tiny):
    pytest.importorskip('mmdet')
    from mmdet.datasets import CocoDataset
    from mmdet.utils import register_all_modules
    register_all_modules(init_default_scope=True)
    dataset = CocoDataset(
        data_root=str(tiny), ann_file='annotations/instances_train.json', data_prefix=dict(img='train/'),
        metainfo=dict(classes=miniature.CLASSES), filter_cfg=dict(filter_empty_gt=True, min_size=32),
        pipeline=[dict(type='LoadImageFromFile'), dict(type='LoadAnnotations', with_bbox=True, with_mask=True),
                  dict(type='PackDetInputs', meta_keys=('img_id', ))])
    assert len(dataset) == 6
    entries = json.loads((tiny / 'annotations/instances_train.json').read_text())['annotations']
    sample = dataset[0]
    instances = sample['data_samples'].gt_instances
    expected = [entry for entry in entries if entry['image_id'] == sample['data_samples'].img_id]
    assert tuple(sample['inputs'].shape) == (3, 80, 96)
    assert instances.labels.tolist() == [entry['category_id'] - 1 for entry in expected]
    for mask, entry in zip(instances.masks.masks, expected):
        assert np.array_equal(mask, coco_mask.decode(entry['segmentation']))


def test_mmseg_reads_it(tiny):
    pytest.importorskip('mmseg')
    from mmengine.registry import DATASETS, DefaultScope
    cfg = Config.fromfile(ROOT / 'configs/demo/setr_pup_vit_mini_provpt_digits.py')
    with DefaultScope.overwrite_default_scope('mmseg'):
        import mmseg.datasets  # noqa: F401  registers the data set and its transforms
        pipeline = [step for step in cfg.train_pipeline if step.type != 'Resize']
        dataset = DATASETS.build(dict(cfg.train_dataloader.dataset, data_root=str(tiny), pipeline=pipeline))
    assert len(dataset) == 6 and dataset.metainfo['classes'] == miniature.LABELS
    for number in range(6):
        label_map = dataset[number]['data_samples'].gt_sem_seg.data[0].numpy()
        stored = np.array(Image.open(tiny / f'annotations/training/{number + 1:06d}.png')).astype(int)
        np.testing.assert_array_equal(label_map, np.where(stored == 0, 255, stored - 1))


@pytest.mark.parametrize('name, library', [('swin', 'mmdet'), ('swin', 'mmpretrain'), ('vit', 'mmpretrain')])
def test_shipped_checkpoints_fit_upstreams_backbones(name, library):
    """All weights come from the file."""
    models = pytest.importorskip(f'{library}.models.backbones')
    path = CHECKPOINTS[name]
    assert path.stat().st_size <= 4 * 2**20
    checkpoint = torch.load(path, map_location='cpu', weights_only=True)
    assert (ROOT / checkpoint['meta']['script']).exists()
    assert min(checkpoint['meta']['accuracy'].values()) > 0.2  # chance is 0.1
    plain = {key.removeprefix('backbone.'): value for key, value in checkpoint['state_dict'].items()}
    init_cfg = dict(type='Pretrained', checkpoint=str(path), prefix='backbone.')
    if name == 'vit':
        arch = dict(embed_dims=128, num_layers=6, num_heads=4, feedforward_channels=512)
        backbone = models.VisionTransformer(arch, (128, 160), 8, final_norm=False, init_cfg=init_cfg,
                                            patch_cfg=dict(kernel_size=24, padding=8))
    elif library == 'mmpretrain':
        arch = dict(embed_dims=24, depths=[2, 2, 6, 2], num_heads=[3, 6, 12, 24])
        backbone = models.SwinTransformer(arch, out_indices=(0, 1, 2, 3), init_cfg=init_cfg)
    else:
        backbone = models.SwinTransformer(embed_dims=24, init_cfg=ConfigDict(init_cfg))
    assert sum(value.numel() for value in backbone.parameters()) < 1.8e6
    backbone.init_weights()
    state = backbone.state_dict()
    assert set(state) == set(plain)
    for key, value in state.items():
        assert torch.equal(value, plain[key].to(value.dtype)), key
