"""Images of the miniature of VTAB-1k, whose six tasks are made on the spot from real images.

Five are made from Fashion-MNIST (70,000 photographs of articles, 28 px; Debian's package ``dataset-fashion-mnist`` or
the same four .gz files), the sixth is scikit-learn's handwritten digits. Like VTAB's, the tasks ask different things of
one backbone: what something is, and how many, where, which way up and how large, whatever it is.
"""
import functools
import gzip
import math
from pathlib import Path

import numpy as np
from PIL import Image

from mmprovpt.datasets.miniature_tasks import LOCATED, LOCATION_EDGES, ORIENTATION_EDGES, SIZE, SIZE_EDGES, TASKS

NUM_TEST = 2000  # images of a test split, as far as there are as many
SPLITS = dict(train='train', test='t10k')  # and the beginning of the file names that Fashion-MNIST gives them
# Shoes are all seen from one side, toe to the left, so it can be told how far one has been turned.
_SHOES = (5, 7, 9)


def read_idx(path: Path) -> np.ndarray:
    """An IDX file of unsigned bytes, gzipped."""
    with gzip.open(path) as file:
        content = file.read()
    dims = content[3]
    shape = np.frombuffer(content, '>u4', dims, 4)
    return np.frombuffer(content, np.uint8, offset=4 + 4 * dims).reshape(shape)


@functools.cache
def load_articles(folder: str, split: str) -> tuple[np.ndarray, np.ndarray]:
    """Fashion-MNIST.

    Args:
        folder: Of the four files.
        split: 'train' or 'test'.

    Returns:
        Images (N, 28, 28) uint8, black background, and classes (N,) int64.
    """
    images, labels = (read_idx(Path(folder) / f'{SPLITS[split]}-{kind}-ubyte.gz')
                      for kind in ('images-idx3', 'labels-idx1'))
    return images, labels.astype(np.int64)


@functools.cache
def load_digits(split: str) -> tuple[np.ndarray, np.ndarray]:
    """scikit-learn's digits: images (N, 8, 8) uint8 and classes (N,) int64; the first 1000 are for training."""
    from sklearn.datasets import load_digits
    digits = load_digits()
    part = slice(1000) if split == 'train' else slice(1000, None)
    return (digits.images[part] * (255 / 16)).round().astype(np.uint8), digits.target[part].astype(np.int64)


def num_images(task: str, split: str) -> int:
    """1000 for training; for testing 2000, or the 797 digits that there are."""
    if split == 'train':
        return 1000
    return 797 if task == 'digits' else NUM_TEST


def draw(task: str, split: str, number: int, folder: str, seed: int = 0) -> tuple[np.ndarray, int]:
    """One image of a task. It depends on (seed, task, split, number) alone; classes come in turn.

    Args:
        task: Key of TASKS.
        split: 'train' or 'test'; each is made from its own photographs.
        number: In [0, num_images(task, split)).
        folder: See ``load_articles``.
        seed: Another one gives other images.

    Returns:
        (56, 56) uint8, grey levels, and the class in [0, number of classes).
    """
    rng = np.random.default_rng([seed, list(TASKS).index(task), list(SPLITS).index(split), number])
    if task == 'digits':
        images, labels = load_digits(split)
        return _scaled(images[number], SIZE), int(labels[number])
    images, labels = load_articles(folder, split)
    label = number % len(TASKS[task].classes)
    canvas = np.zeros((SIZE, SIZE), np.uint8)
    if task == 'category':
        return _scaled(_choose(rng, images, labels == label), SIZE), label
    if task == 'count':
        for cell in rng.choice(9, label + 1, replace=False):  # 3 × 3 cells of 18 px and a pixel between them
            side = int(rng.integers(13, 19))
            left, top = (int(19 * place + rng.integers(18 - side + 1)) for place in (cell % 3, cell // 3))
            _paste(canvas, _scaled(images[rng.integers(len(images))], side), left, top)
    elif task == 'location':
        left, top = rng.integers(*LOCATION_EDGES[label:label + 2]), rng.integers(SIZE - LOCATED + 1)
        _paste(canvas, _scaled(images[rng.integers(len(images))], LOCATED), int(left), int(top))
    elif task == 'orientation':
        angle = rng.uniform(*ORIENTATION_EDGES[label:label + 2])
        side = math.floor(SIZE / math.sqrt(2))  # the corners of the square stay in the image
        shoe = _scaled(_choose(rng, images, np.isin(labels, _SHOES)), side)
        _paste(canvas, shoe, (SIZE - side) // 2, (SIZE - side) // 2)
        canvas = np.array(Image.fromarray(canvas).rotate(angle, Image.Resampling.BILINEAR))
    else:
        side = int(rng.integers(*SIZE_EDGES[label:label + 2]))
        left, top = rng.integers(SIZE - side + 1, size=2)
        _paste(canvas, _scaled(images[rng.integers(len(images))], side), int(left), int(top))
    return canvas, label


def _choose(rng: np.random.Generator, images: np.ndarray, mask: np.ndarray) -> np.ndarray:
    return images[rng.choice(np.flatnonzero(mask))]


def _scaled(image: np.ndarray, side: int) -> np.ndarray:
    return np.array(Image.fromarray(image).resize((side, side), Image.Resampling.BICUBIC))


def _paste(canvas: np.ndarray, image: np.ndarray, left: int, top: int) -> None:
    part = canvas[top:top + len(image), left:left + len(image)]
    np.maximum(part, image[:part.shape[0], :part.shape[1]], out=part)
