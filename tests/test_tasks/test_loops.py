"""Loaders of several tasks in turns; classes and files of each are checked."""
from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import torch
from mmengine.dataset import DefaultSampler, InfiniteSampler
from tasks_toy import joined, write_data
from torch.utils.data import DataLoader

from mmprovpt.cli.preflight import check_files
from mmprovpt.errors import ConfigError
from mmprovpt.hooks import ClassCheckHook
from mmprovpt.tasks import TaskLoaders
from mmprovpt.tasks.loops import MultiTaskEpochTrainLoop


def loader(size, sampler=DefaultSampler):
    numbers = list(range(size))
    return DataLoader(numbers, 2, sampler=sampler(numbers, shuffle=False), collate_fn=lambda batch: dict(inputs=batch))


def test_batches_come_in_turns():
    loaders = TaskLoaders(dict(a=loader(2), b=loader(5)))
    assert len(loaders) == 4
    assert [(batch['task'], batch['inputs']) for batch in loaders] == [
        ('a', [0, 1]), ('b', [0, 1]), ('b', [2, 3]), ('b', [4])]
    loaders.sampler.set_epoch(3)
    assert [each.sampler.epoch for each in loaders.loaders.values()] == [3, 3]


def test_endless_ones():
    batches = iter(TaskLoaders(dict(a=loader(2, InfiniteSampler), b=loader(4, InfiniteSampler))))
    assert [next(batches)['task'] for _ in range(6)] == ['a', 'b'] * 3
    with pytest.raises(ConfigError, match='train_dataloader: a have an InfiniteSampler and others do not'):
        TaskLoaders(dict(a=loader(2, InfiniteSampler), b=loader(2)))


def test_missing_files_of_each_task_are_named(tmp_path):
    cfg = joined(str(write_data(tmp_path / 'data')))
    check_files(cfg, ('train', 'val'))
    (tmp_path / 'data/detect/boxes.json').unlink()
    with pytest.raises(ConfigError) as error:
        check_files(cfg, ('train', 'val'))
    for key in ('train_dataloader.detect.dataset.ann_file', 'val_evaluator.detect.ann_file'):
        assert f'{key} = ' in str(error.value)


@pytest.mark.parametrize('task, message', [
    ('segment', None), ('classify', 'model.head.num_classes is 3, but test_dataloader.classify.dataset has 2 classes')])
def test_classes_are_those_of_the_task(task, message):
    model = SimpleNamespace(tasks=dict(segment=Heads(2), classify=Heads(3)))
    dataset = SimpleNamespace(metainfo=dict(classes=('a', 'b')))
    runner = SimpleNamespace(model=model, test_dataloader=SimpleNamespace(
        loaders={task: SimpleNamespace(dataset=dataset)}))
    with pytest.raises(ConfigError, match=message) if message else nullcontext():
        ClassCheckHook(heads_only=True).before_test(runner)


class Heads(torch.nn.Module):

    def __init__(self, num_classes):
        super().__init__()
        self.head = torch.nn.Identity()
        self.head.num_classes = num_classes


def test_a_task_without_a_loader():
    runner = SimpleNamespace(model=SimpleNamespace(trained=('segment', )))
    with pytest.raises(ConfigError, match='train_dataloader has no loader for segment; it has detect, classify'):
        MultiTaskEpochTrainLoop(runner, dict(detect={}, classify={}), max_epochs=1)
