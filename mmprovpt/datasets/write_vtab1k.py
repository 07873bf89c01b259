"""Write a task in VTAB-1k's layout."""
import os
import shutil
from pathlib import Path
from typing import Callable, Dict, Iterable, Optional, Tuple

import numpy as np
from PIL import Image

from .vtab1k_tasks import SPLITS

Samples = Iterable[Tuple[np.ndarray, int]]


def write_task(out: os.PathLike, splits: Dict[str, Callable[[], Samples]], num_classes: int,
               num_images: Optional[Dict[str, int]] = None, progress: Optional[Callable[[], None]] = None) -> None:
    """Write one task, as PNG files; what an interrupted run has finished is kept.

    A split's list, ``{split}.txt``, is written last: a split without it is written anew.

    Args:
        out (path): The task's folder.
        splits (dict): For 'train800', 'val200' and 'test', a function that gives (image, label) anew; images are
            uint8 (H, W) or (H, W, 3), labels in [0, num_classes). 'train800val200' is made of the first two.
        num_classes (int): Number of classes.
        num_images (dict, optional): Images of each split that are expected; default: 800, 200, any.
        progress (callable, optional): Called after each image.

    Raises:
        ValueError: A label is out of its range, or a split has another number of images than it should.
    """
    out = Path(out)
    expected = {**SPLITS, **(num_images or {})}
    for split, samples in splits.items():
        if not (out / f'{split}.txt').exists():
            _write_split(out, split, samples(), num_classes, expected[split], progress)
    _write_list(out, 'train800val200', ''.join((out / f'{split}.txt').read_text() for split in ('train800', 'val200')))


def _write_split(out: Path, split: str, samples: Samples, num_classes: int, expected: Optional[int],
                 progress: Optional[Callable[[], None]]) -> None:
    folder = out / 'images' / split
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    lines = []
    for number, (image, label) in enumerate(samples):
        if not 0 <= label < num_classes:
            raise ValueError(f'{out.name}, {split}: image {number} has label {label} of '
                             f'{num_classes} classes')
        name = f'images/{split}/{number:06d}.png'
        Image.fromarray(image).convert('RGB').save(out / name)
        lines.append(f'{name} {label}\n')
        if progress is not None:
            progress()
    if expected not in (None, len(lines)):
        raise ValueError(f'{out.name}, {split}: {len(lines)} images, but there should be {expected}')
    _write_list(out, split, ''.join(lines))


def _write_list(out: Path, split: str, text: str) -> None:
    temporary = out / f'.{split}.tmp'
    temporary.write_text(text)
    os.replace(temporary, out / f'{split}.txt')
