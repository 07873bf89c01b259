"""VTAB-1k's layout: written, read by mmpretrain's pipeline, and every fault of it named."""
import numpy as np
import pytest
import torch
from mmengine.registry import DATASETS, DefaultScope
from mmengine.runner import Runner

from mmprovpt.datasets.vtab1k_tasks import GROUPS, VTAB1K
from mmprovpt.datasets.write_vtab1k import write_task

CLASSES = 4


def sample(split, number):
    """A grey image that tells its split and number."""
    return np.full((6, 5), 40 * len(split) % 200 + number % 50, np.uint8), number % CLASSES


def samples(split, count):
    return lambda: (sample(split, number) for number in range(count))


@pytest.fixture(scope='module')
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp('vtab')
    write_task(folder / 'mine', dict(train800=samples('train800', 800), val200=samples('val200', 200),
                                     test=samples('test', 30)), CLASSES, dict(test=30))
    return folder


def build(root, split='test', task='mine', **kwargs):
    kwargs = {**dict(num_classes=CLASSES, pipeline=[]), **kwargs}
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        return DATASETS.build(dict(type='mmprovpt.VTAB1k', data_root=str(root), task=task, split=split, **kwargs))


@pytest.mark.parametrize('split, parts', [
    ('train800', [('train800', 800)]), ('val200', [('val200', 200)]), ('test', [('test', 30)]),
    ('train800val200', [('train800', 800), ('val200', 200)])])
def test_a_pipeline_gives_what_was_written(root, split, parts):
    pipeline = [dict(type='LoadImageFromFile'), dict(type='Resize', scale=(8, 8)), dict(type='PackInputs')]
    dataset = build(root, split, pipeline=pipeline)
    expected = [sample(part, number) for part, count in parts for number in range(count)]
    assert len(dataset) == len(expected)
    for index in (0, 7, len(expected) - 1):
        found = dataset[index]
        image, label = expected[index]
        assert found['inputs'].shape == (3, 8, 8) and (found['inputs'] == int(image[0, 0])).all()
        assert found['data_samples'].gt_label.item() == label
    assert dataset.get_gt_labels().tolist() == [label for _, label in expected]


def test_a_real_dataloader(root):
    pipeline = [dict(type='LoadImageFromFile'), dict(type='PackInputs')]
    config = dict(type='mmprovpt.VTAB1k', data_root=str(root), task='mine', split='test', num_classes=CLASSES,
                  pipeline=pipeline)
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        loader = Runner.build_dataloader(dict(batch_size=10, num_workers=0, dataset=config, sampler=dict(
            type='DefaultSampler', shuffle=False)))
        labels = torch.cat([sample.gt_label for batch in loader for sample in batch['data_samples']])
    assert labels.tolist() == [number % CLASSES for number in range(30)]


def test_an_interrupted_writer_goes_on(tmp_path):
    calls = []

    def train():
        calls.append('train800')
        return samples('train800', 800)()

    def broken():
        yield from samples('val200', 100)()
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_task(tmp_path / 'mine', dict(train800=train, val200=broken), CLASSES)
    assert not (tmp_path / 'mine' / 'val200.txt').exists()
    write_task(tmp_path / 'mine', dict(train800=train, val200=samples('val200', 200)), CLASSES)
    assert calls == ['train800'] and len(build(tmp_path, 'train800val200')) == 1000
    with pytest.raises(ValueError, match='other, val200: 100 images, but there should be 200'):
        write_task(tmp_path / 'other', dict(val200=samples('val200', 100)), CLASSES)
    with pytest.raises(ValueError, match='image 3 has label 3 of 3 classes'):
        write_task(tmp_path / 'another', dict(val200=samples('val200', 200)), CLASSES - 1)


def test_every_fault_is_listed(root, tmp_path):
    folder = tmp_path / 'mine'
    write_task(folder, dict(train800=samples('x', 2), val200=samples('y', 2), test=samples('test', 8)), CLASSES,
               dict(train800=2, val200=2))
    images = sorted((folder / 'images' / 'test').iterdir())
    images[1].unlink()
    images[2].write_bytes(b'')
    images[3].write_bytes(images[4].read_bytes()[:-5])
    lines = (folder / 'test.txt').read_text().splitlines()
    lines[5] = lines[5].rpartition(' ')[0]
    lines[6] = lines[6].rpartition(' ')[0] + ' 4'
    (folder / 'test.txt').write_text('\n'.join(lines) + '\n')
    with pytest.raises(ValueError) as error:
        build(tmp_path)
    text = str(error.value)
    for part in ('5 faults', 'line 2: ', 'No such file', 'line 3: ', 'is empty', 'line 4: ', 'is truncated', 'line 6: ',
                 'line 7: ', 'is no path and a label below 4'):
        assert part in text, part
    assert 'line 1:' not in text and 'line 8:' not in text
    with pytest.raises(ValueError, match='2 images, but there must be 800'):
        build(tmp_path, 'train800')
    (folder / 'test.txt').write_text('nothing 0\n' * 50)
    with pytest.raises(ValueError, match='(?s)50 faults.*and 30 more'):
        build(tmp_path)


def test_what_cannot_be_read(root, tmp_path):
    with pytest.raises(ValueError, match="unknown task 'ciphar'; known are cifar, caltech101, .*num_classes"):
        build(root, task='ciphar', num_classes=None)
    with pytest.raises(ValueError, match="unknown split 'val'; known are train800, val200"):
        build(root, split='val')
    with pytest.raises(ValueError, match='cifar has 100 classes, but num_classes=4'):
        build(root, task='cifar')
    with pytest.raises(FileNotFoundError, match=r'cifar/test.txt. docs/datasets.md says how to get cifar'):
        build(root, task='cifar', num_classes=None)


def test_the_nineteen_tasks():
    """Classes in VTAB's order; 7 natural, 4 specialized and 8 structured tasks."""
    assert [task.num_classes for task in VTAB1K.values()] == [
        100, 102, 47, 102, 37, 10, 397, 2, 10, 45, 5, 8, 6, 6, 4, 16, 16, 18, 9]
    assert [task.group for task in VTAB1K.values()] == [
        group for group, count in zip(GROUPS, (7, 4, 8)) for _ in range(count)]
