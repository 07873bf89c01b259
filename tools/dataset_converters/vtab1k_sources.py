"""Where VTAB-1k's images come from: which of TensorFlow Datasets' examples, and how they become image and label.

Splits, thresholds and groupings are those of the benchmark's own code (google-research/task_adaptation), versions those
that VPT used. Neither TensorFlow nor TensorFlow Datasets is needed for this module.
"""
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import numpy as np

Example = dict[str, np.ndarray]
Counts = dict[str, int]


class Source(NamedTuple):
    """The source of one task.

    Attributes:
        builder: Name, config and version for ``tfds.builder``.
        splits: Number of examples of each split there → for train800, val200 and test the instruction for
            ``as_dataset(split=…)``.
        convert: Example (a dict of NumPy arrays) → image (H, W, 1 or 3) uint8 and label.
    """
    builder: str
    splits: Callable[[Counts], dict[str, str]]
    convert: Callable[[Example], tuple[np.ndarray, int]]


def _three_splits(counts: Counts) -> dict[str, str]:
    return dict(train800='train[:800]', val200='validation[:200]', test='test')


def _split_training(counts: Counts, percent: int = 90, test: str = 'test') -> dict[str, str]:
    """Validation images begin where ``percent`` of the training images end."""
    first = percent * counts['train'] // 100
    return dict(train800='train[:800]', val200=f'train[{first}:{first + 200}]', test=test)


def _split_all(counts: Counts, train: int, val: int) -> dict[str, str]:
    """There is but one split: ``train`` % and ``val`` % of it, and the rest for testing."""
    first = train * counts['train'] // 100
    rest = first + val * counts['train'] // 100
    return _split_training(counts, train, f'train[{rest}:]')


def _split_testing(counts: Counts) -> dict[str, str]:
    return dict(train800='train[:800]', val200='test[:200]', test=f'test[{counts["test"] // 2}:]')


def _label(example: Example, key: str = 'label') -> tuple[np.ndarray, int]:
    return example['image'], int(example[key])


def _bin(value: float, edges: tuple[float, ...]) -> int:
    """The number of edges below the value."""
    return int(np.searchsorted(np.array(edges, np.float32), np.float32(value), side='left'))


def _clevr_count(example: Example) -> tuple[np.ndarray, int]:
    return example['image'], len(example['objects']['size']) - 3  # there are 3 to 10


def _clevr_distance(example: Example) -> tuple[np.ndarray, int]:
    """Distance of the closest object."""
    return example['image'], _bin(example['objects']['pixel_coords'][:, 2].min(), (8, 8.5, 9, 9.5, 10))


def _kitti_distance(example: Example) -> tuple[np.ndarray, int]:
    """Distance of the closest car, van or truck in metres; the last class: there is none."""
    objects = example['objects']
    distances = objects['location'][objects['type'] < 3, 2]
    return example['image'], _bin(distances.min(), (8, 20, 999)) if len(distances) else 3


def _dsprites(example: Example, key: str, num_values: int) -> tuple[np.ndarray, int]:
    """Sixteen classes, each of neighbouring values; pixels are 0 and 1 there."""
    return example['image'] * np.uint8(255), int(example[key] // (num_values / 16))


def _smallnorb(key: str) -> Source:
    return Source('smallnorb:2.*.*', _split_testing, partial(_label, key=key))


_CLEVR = partial(_split_training, test='validation')  # the images of 'test' have no labels
_DSPRITES = partial(_split_all, train=80, val=10)
_REMOTE = partial(_split_all, train=60, val=20)

SOURCES: dict[str, Source] = dict(
    cifar=Source('cifar100:3.*.*', _split_training, _label),
    caltech101=Source('caltech101:3.*.*', _split_training, _label),
    dtd=Source('dtd:3.*.*', _three_splits, _label),
    oxford_flowers102=Source('oxford_flowers102:2.*.*', _three_splits, _label),
    oxford_iiit_pet=Source('oxford_iiit_pet:3.*.*', partial(_split_training, percent=80), _label),
    svhn=Source('svhn_cropped:3.*.*', _split_training, _label),
    sun397=Source('sun397/tfds:4.*.*', _three_splits, _label),
    patch_camelyon=Source('patch_camelyon:2.*.*', _three_splits, _label),
    eurosat=Source('eurosat/rgb:2.*.*', _REMOTE, _label),
    resisc45=Source('resisc45:3.*.*', _REMOTE, _label),
    diabetic_retinopathy=Source('diabetic_retinopathy_detection/btgraham-300:3.*.*', _three_splits, _label),
    clevr_count=Source('clevr:3.*.*', _CLEVR, _clevr_count),
    clevr_dist=Source('clevr:3.*.*', _CLEVR, _clevr_distance),
    dmlab=Source('dmlab:2.0.1', _three_splits, _label),
    # As VPT; the benchmark's code names 3.1.0.
    kitti=Source('kitti:3.2.0', _three_splits, _kitti_distance),
    dsprites_loc=Source('dsprites:2.*.*', _DSPRITES, partial(_dsprites, key='label_x_position', num_values=32)),
    dsprites_ori=Source('dsprites:2.*.*', _DSPRITES, partial(_dsprites, key='label_orientation', num_values=40)),
    smallnorb_azi=_smallnorb('label_azimuth'),
    smallnorb_ele=_smallnorb('label_elevation'),
)
