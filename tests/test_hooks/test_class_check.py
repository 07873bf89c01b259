"""Classes of data sets and heads: what our tools compare for any config, and what docs/how-to/dense.md says once."""
import json
import re
from pathlib import Path

import numpy as np
import pytest
from mmengine.config import Config
from mmengine.registry import DATASETS, DefaultScope
from PIL import Image
from tiny_task import write_task

ROOT = Path(__file__).parents[2]
SECTION = (ROOT / 'docs/how-to/dense.md').read_text(encoding='utf-8').partition('## Classes of your own')[2]
DETECTION, SEGMENTATION = re.findall('```python\n(.*?)```', SECTION, re.S)[:2]
OTHER_HEAD = 'model.head.num_classes=3'


def test_our_tools_compare_heads_with_data(tmp_path, call):
    """Whatever the config has of hooks; the data set reads its two classes off folders."""
    task = write_task(tmp_path, 'test_dataloader, test_evaluator, test_cfg = val_dataloader, val_evaluator, val_cfg\n'
                                'train_cfg = dict(by_epoch=True, max_epochs=1, val_interval=1)\n')
    with pytest.raises(SystemExit, match='model.head.num_classes is 3, but train_dataloader.* has 2 classes: 0, 1'):
        call('train', task, '--work-dir', tmp_path / 'a', '--cfg-options', OTHER_HEAD)
    # The preprocessor's number is read for mixed and soft labels alone.
    with pytest.raises(SystemExit, match='model.data_preprocessor.num_classes is 3, but train_dataloader'):
        call('train', task, '--work-dir', tmp_path / 'a', '--cfg-options', 'model.data_preprocessor.num_classes=3',
             'model.train_cfg.augments.type=Mixup', 'model.train_cfg.augments.alpha=0.8')
    call('train', task, '--work-dir', tmp_path / 'a', '--cfg-options', 'model.data_preprocessor.num_classes=3')
    call('train', task, '--work-dir', tmp_path / 'b', '--cfg-options', OTHER_HEAD, 'default_hooks.classes=None')
    weights = tmp_path / 'b/epoch_1.pth'
    with pytest.raises(SystemExit, match='num_classes is 3, but test_dataloader.dataset has 2 classes'):
        call('test', task, weights, '--work-dir', tmp_path / 'c', '--cfg-options', OTHER_HEAD)


def numbers(node):
    """All num_classes in a config."""
    if isinstance(node, dict):
        yield from [node['num_classes']] if 'num_classes' in node else []
        node = list(node.values())
    for value in node if isinstance(node, (list, tuple)) else []:
        yield from numbers(value)


def parse(folder, monkeypatch, text, classes):
    """A printed config, with the classes changed where it says them."""
    (folder / 'configs').symlink_to(ROOT / 'configs')
    text, count = re.subn(r'^classes = \(.*?\)', f'classes = {classes!r}', text, flags=re.M)
    assert count == 1
    (folder / 'mine.py').write_text(text, encoding='utf-8')
    monkeypatch.chdir(folder)
    return Config.fromfile('mine.py')


def datasets(cfg):
    with DefaultScope.overwrite_default_scope(cfg.default_scope):
        return [DATASETS.build(cfg[f'{phase}_dataloader'].dataset) for phase in ('train', 'val', 'test')]


@pytest.mark.parametrize('classes', [('cat', 'dog'), ('cat', 'dog', 'fish', 'cow')])
def test_detection_as_printed(tmp_path, monkeypatch, classes):
    cfg = parse(tmp_path, monkeypatch, DETECTION, classes)
    assert list(numbers(cfg.model)) == [len(classes)] * 2
    for split in ('train', 'val'):
        (tmp_path / 'data/pets' / split).mkdir(parents=True)
        Image.fromarray(np.zeros((64, 64, 3), np.uint8)).save(tmp_path / f'data/pets/{split}/0.jpg')
        content = dict(
            images=[dict(id=0, file_name='0.jpg', height=64, width=64)],
            categories=[dict(id=5 + i, name=name) for i, name in enumerate(classes)],
            annotations=[dict(id=i, image_id=0, category_id=5 + i, bbox=[4, 4, 40, 40], area=1600, iscrowd=0,
                              segmentation=[[4, 4, 44, 4, 44, 44]]) for i in range(len(classes))])
        (tmp_path / f'data/pets/{split}.json').write_text(json.dumps(content))
    for dataset in datasets(cfg):
        assert dataset.metainfo['classes'] == classes
        labels = [instance['bbox_label'] for instance in dataset.get_data_info(0)['instances']]
        assert labels == list(range(len(classes)))
    assert cfg.val_evaluator.ann_file == cfg.test_evaluator.ann_file == 'data/pets/val.json'


@pytest.mark.parametrize('classes', [('road', 'grass', 'sky'), ('road', 'grass')])
def test_segmentation_as_printed(tmp_path, monkeypatch, classes):
    cfg = parse(tmp_path, monkeypatch, SEGMENTATION, classes)
    assert list(numbers(cfg.model)) == [len(classes)] * (1 + len(cfg.model.auxiliary_head))
    assert len(cfg.model.auxiliary_head) == 3
    for split in ('train', 'val'):
        for kind, ending, values in ('images', 'jpg', np.zeros((64, 64, 3), np.uint8)), \
                                    ('masks', 'png', np.full((64, 64), len(classes), np.uint8)):
            folder = tmp_path / 'data/roads' / kind / split
            folder.mkdir(parents=True)
            Image.fromarray(values).save(folder / f'0.{ending}')
    for dataset in datasets(cfg):
        assert dataset.metainfo['classes'] == classes
        assert dataset[0]['data_samples'].gt_sem_seg.data.unique().tolist()[0] == len(classes) - 1
