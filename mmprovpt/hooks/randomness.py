"""Random numbers that depend on where training stands, not on how it got there."""
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, IterableDataset, Sampler, get_worker_info

from mmprovpt.errors import ConfigError
from mmprovpt.tasks import sampler_of

IMAGE = 3  # IterationSeedHook has 1 for epochs and 2 for iterations


def seed_everything(*numbers: int) -> None:
    """Seed the global generators of Python, NumPy and torch (all devices) by any numbers >= 0.

    No device is waited for.
    """
    torch.manual_seed(_seed_cpu(*numbers))


def _seed_cpu(*numbers: int) -> int:
    seed = int(np.random.SeedSequence(numbers).generate_state(1)[0])
    random.seed(seed)
    np.random.seed(seed)
    torch.default_generator.manual_seed(seed)
    return seed


@contextmanager
def fixed_randomness(*numbers: int):
    """Inside, every global generator starts from ``numbers``; afterwards each goes on as if nothing had been drawn."""
    states = random.getstate(), np.random.get_state()
    devices = [torch.cuda.current_device()] if torch.cuda.is_available() else []
    try:
        with torch.random.fork_rng(devices):
            seed_everything(*numbers)
            yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])


# Loading. The number of an image in its epoch is known where indices are drawn, and needed where images are loaded, in
# other processes, some of which outlive an epoch. So it travels with the index.

class NumberedIndex(int):
    """The index of an image, with ``numbers`` to seed its loading by."""

    numbers: tuple[int, ...]


def seed_loading(loader: DataLoader) -> Sampler:
    """Have a loader seed the global generators of the CPU before each image, in whichever process.

    Returns:
        Sampler: The loader's, now with ``begin_epoch(*numbers)``, to be called before each epoch.

    Raises:
        ConfigError: The dataset has no indices, or they do not come from a sampler.
    """
    sampler = sampler_of(loader)
    if isinstance(loader.dataset, IterableDataset) or sampler is None:
        what = type(loader.dataset if isinstance(loader.dataset, IterableDataset) else loader.batch_sampler).__name__
        raise ConfigError(f'IterationSeedHook seeds the loading of each image by its number, but {what} gives none: '
                          'take a dataset with indices, and a sampler in train_dataloader, or leave the hook out')
    if not hasattr(sampler, 'begin_epoch'):
        _derive(sampler, _numbering)
        if loader.num_workers:
            loader.worker_init_fn = partial(_start_worker, loader.worker_init_fn)
        else:
            _derive(loader.dataset, _seeding)
    return sampler


def _start_worker(upstream: Callable | None, worker: int) -> None:
    # The class is made here and not before: workers that are spawned get the dataset by pickling.
    if upstream is not None:
        upstream(worker)
    _derive(get_worker_info().dataset, _seeding)


def _derive(instance: Sampler | Dataset, derived: Callable[[type], type]) -> None:
    """Give an instance a class that is derived from its own."""
    try:
        instance.__class__ = derived(type(instance))
    except TypeError:
        raise ConfigError('IterationSeedHook needs a dataset and a sampler whose classes are written in Python, but '
                          f'got a {type(instance).__name__}: write such a class, or leave the hook out') from None


def _numbering(base: type[Sampler]) -> type[Sampler]:
    """A sampler whose indices are numbered from 0, in each epoch or in a whole loop of iterations."""
    class Numbering(base):
        numbers, drawn = (), 0

        def begin_epoch(self, *numbers: int) -> None:
            self.numbers, self.drawn = numbers, 0

        def __iter__(self) -> Iterator[NumberedIndex]:
            for index in super().__iter__():
                numbered = NumberedIndex(index)
                numbered.numbers = *self.numbers, self.drawn, IMAGE
                self.drawn += 1
                yield numbered

    class SkippingNumbering(Numbering):
        def skip(self, num_samples: int) -> None:
            super().skip(num_samples)
            self.drawn = num_samples

    # MMEngine's InfiniteSampler can skip; others must not look as if they could.
    return SkippingNumbering if hasattr(base, 'skip') else Numbering


def _seeding(base: type[Dataset]) -> type[Dataset]:
    """A dataset that seeds before it loads an image whose index is numbered."""
    class Seeding(base):
        __getitems__ = None  # some load a whole batch at once

        def __getitem__(self, index: int):
            if not isinstance(index, NumberedIndex):
                return super().__getitem__(index)
            _seed_cpu(*index.numbers)
            return super().__getitem__(int(index))

    Seeding.__name__ = base.__name__  # messages name it
    return Seeding
