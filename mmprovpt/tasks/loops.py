"""MMEngine's loops with a loader, and in tests an evaluator, for each task of a MultiTaskModel.

Not one loader of MMEngine's ConcatDataset: tasks differ in batch size, sampler, collation and the classes of their
data, and each is to see the batches that it sees alone.
"""
import itertools
from collections.abc import Iterator
from contextlib import AbstractContextManager
from types import SimpleNamespace
from typing import Any

from mmengine.dataset import InfiniteSampler
from mmengine.registry import DefaultScope
from mmengine.runner import EpochBasedTrainLoop, IterBasedTrainLoop, Runner, TestLoop, ValLoop
from mmengine.runner.base_loop import BaseLoop
from torch.utils.data import DataLoader

from mmprovpt.errors import ConfigError
from mmprovpt.registry import LOOPS


class TaskLoaders:
    """The loaders of several tasks as one: a batch of each in turns, with the name of its ``task``.

    One that has no more drops out, so an epoch has all batches of all tasks.

    Args:
        loaders: By task. Either all end or, with InfiniteSampler, none.

    Attributes:
        loaders: The same.

    Raises:
        ConfigError: Some end and others do not.
    """

    def __init__(self, loaders: dict[str, DataLoader]) -> None:
        self.loaders = loaders
        self.dataset = SimpleNamespace(metainfo={})  # MMEngine's loops ask for it; each task has its own
        self.sampler = SimpleNamespace(set_epoch=self.set_epoch)  # whom MMEngine's hook tells the epoch
        endless = [name for name, loader in loaders.items() if isinstance(sampler_of(loader), InfiniteSampler)]
        if endless and len(endless) < len(loaders):
            raise ConfigError(f'train_dataloader: {", ".join(endless)} have an InfiniteSampler and others do not, so '
                              'these would end and never come again: give all of them one, or none')

    def __len__(self) -> int:
        return sum(map(len, self.loaders.values()))

    def __iter__(self) -> Iterator[dict]:
        running = {name: iter(loader) for name, loader in self.loaders.items()}
        while running:
            for name, batches in list(running.items()):
                batch = next(batches, None)
                if batch is None:
                    del running[name]
                else:
                    yield dict(batch, task=name)

    def set_epoch(self, epoch: int) -> None:
        """Tell it to the samplers, as MMEngine does."""
        for loader in self.loaders.values():
            if hasattr(sampler_of(loader), 'set_epoch'):
                sampler_of(loader).set_epoch(epoch)


def loaders_by_task(loader: DataLoader | TaskLoaders) -> dict[str, DataLoader]:
    """By task; of a loader that is of no task, itself under ''."""
    return getattr(loader, 'loaders', {'': loader})


def sampler_of(loader: DataLoader) -> Any:
    """A loader's sampler, which may be that of its batch sampler."""
    source = loader if loader.batch_sampler is None else loader.batch_sampler
    return getattr(source, 'sampler', None)


def _scope(config: dict) -> AbstractContextManager:
    """Build what belongs to a loader's config by the codebase that its ``_scope_`` names."""
    return DefaultScope.overwrite_default_scope(config.get('_scope_'))


def _build(runner: Runner, config: dict) -> DataLoader:
    given = {key: value for key, value in config.items() if key != '_scope_'}
    with _scope(config):
        return runner.build_dataloader(given, runner.seed, runner._randomness_cfg.get('diff_rank_seed', False))


def _chosen(dataloader: dict, names, key: str) -> dict[str, dict]:
    missing = [name for name in names if name not in dataloader]
    if missing:
        raise ConfigError(f'{key} has no loader for {", ".join(missing)}; it has {", ".join(dataloader)}')
    return {name: dataloader[name] for name in names}


def _trained(runner: Runner) -> tuple[str, ...]:
    """The tasks that a Runner's model, which may be wrapped, trains."""
    return getattr(runner.model, 'module', runner.model).trained


class _InTurns:
    """In front of a train loop: of ``train_dataloader=dict(<task>=dict(...))``, those of trained tasks are read."""

    def __init__(self, runner: Runner, dataloader: dict, **kwargs) -> None:
        chosen = _chosen(dataloader, _trained(runner), 'train_dataloader')
        super().__init__(runner, TaskLoaders({name: _build(runner, each) for name, each in chosen.items()}), **kwargs)


@LOOPS.register_module()
class MultiTaskEpochTrainLoop(_InTurns, EpochBasedTrainLoop):
    """Epochs that have all batches of all trained tasks, in turns; arguments of MMEngine's EpochBasedTrainLoop."""


@LOOPS.register_module()
class MultiTaskIterTrainLoop(_InTurns, IterBasedTrainLoop):
    """Iterations, of each trained task in turns; arguments of MMEngine's IterBasedTrainLoop."""


class _OfEachTask(BaseLoop):
    """One task after the other by MMEngine's own loop; metrics are called ``<task>/<name>``."""

    upstream: type
    mode: str

    def __init__(self, runner: Runner, dataloader: dict, evaluator: dict, tasks: list[str] | None = None,
                 **kwargs) -> None:
        self.loops = {}
        for name, each in _chosen(dataloader, tasks or list(dataloader), f'{self.mode}_dataloader').items():
            with _scope(each):
                self.loops[name] = self.upstream(runner, _build(runner, each), evaluator[name], **kwargs)
        super().__init__(runner, TaskLoaders({name: loop.dataloader for name, loop in self.loops.items()}))

    def run(self) -> dict:
        """All of them; returns all metrics."""
        for when in (f'before_{self.mode}', f'before_{self.mode}_epoch'):
            self.runner.call_hook(when)
        self.runner.model.eval()
        metrics: dict[str, Any] = {}
        number = itertools.count()
        for name, loop in self.loops.items():
            for batch in loop.dataloader:
                loop.run_iter(next(number), dict(batch, task=name))
            found = loop.evaluator.evaluate(len(loop.dataloader.dataset))
            metrics.update({f'{name}/{key}': value for key, value in found.items()})
        self.runner.call_hook(f'after_{self.mode}_epoch', metrics=metrics)
        self.runner.call_hook(f'after_{self.mode}')
        return metrics


@LOOPS.register_module()
class MultiTaskValLoop(_OfEachTask):
    """Validation of the tasks that are trained, for the others stay as they are; or of those in ``tasks``.

    Other arguments are those of MMEngine's ValLoop.
    """

    upstream, mode = ValLoop, 'val'

    def __init__(self, runner: Runner, dataloader: dict, evaluator: dict, tasks: list[str] | None = None,
                 **kwargs) -> None:
        super().__init__(runner, dataloader, evaluator, tasks or list(_trained(runner)), **kwargs)


@LOOPS.register_module()
class MultiTaskTestLoop(_OfEachTask):
    """Tests of all tasks, or of those in ``tasks``; other arguments of MMEngine's TestLoop."""

    upstream, mode = TestLoop, 'test'
