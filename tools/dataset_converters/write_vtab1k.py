"""Write a task in VTAB-1k's layout."""
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
from PIL import Image

from mmprovpt.errors import ConfigError
from mmprovpt.files import write_atomically

# Splits that hold images; train800val200 lists those of the first two.
WRITTEN = ('train800', 'val200', 'test')
Samples = Iterable[tuple[np.ndarray, int]]


def write_task(folder: Path, splits: dict[str, Callable[[], Samples]], sizes: dict[str, int], num_classes: int,
               progress: Callable[[str, int, int], None] | None = None) -> list[str]:
    """Write what is missing of a task; splits that are complete are kept.

    A split is written beside its place and moved there when it is complete and verified, its list last; so a list that
    is there is complete, and an interrupted run goes on with the next split.

    Args:
        folder: Of the task, `<data_root>/<task>`.
        splits: For each of WRITTEN, a function that gives its images, (H, W) or (H, W, 3) uint8, RGB, and labels. It is
            called only if the split is missing.
        sizes: Images of each split.
        num_classes: Labels are in [0, num_classes).
        progress: Called with (split, images written, images in all).

    Returns:
        The splits that were written now.

    Raises:
        ConfigError: The images are more or fewer than said, a label is out of range, an image is of another kind, or
            a class has no image in any split. Of a split that fails nothing is left behind.
    """
    folder = Path(folder)
    written = []
    for split in WRITTEN:
        if not (folder / f'{split}.txt').exists():
            _write_split(folder, split, splits[split](), sizes[split], num_classes, progress)
            written.append(split)
    lists = {split: (folder / f'{split}.txt').read_text(encoding='utf-8-sig') for split in WRITTEN}
    for split, text in lists.items():  # those that were kept too
        if len(text.splitlines()) != sizes[split]:
            raise ConfigError(f'{folder / split}.txt lists {len(text.splitlines())} images, expected {sizes[split]}; '
                              'remove it to have the split written again')
    # Together: among Sun397's 1000 images for training not all classes can be.
    labels = {int(line.rsplit(None, 1)[1]) for text in lists.values() for line in text.splitlines()}
    missing = set(range(num_classes)) - labels
    if missing:
        raise ConfigError(f'{folder}: no image is of class {", ".join(map(str, sorted(missing)))}; the task has '
                          f'{num_classes} classes. Remove the folder when the source is right')
    if written or not (folder / 'train800val200.txt').exists():
        write_atomically((lists['train800'] + lists['val200']).encode(), folder / 'train800val200.txt')
    return written


def _write_split(folder, split, samples, size, num_classes, progress):
    """The images and the list of one split."""
    final = folder / 'images' / split
    partial = folder / 'images' / f'{split}.partial'
    for leftover in (partial, final):  # images without a list
        shutil.rmtree(leftover, ignore_errors=True)
    partial.mkdir(parents=True)
    lines = []
    try:
        for number, (image, label) in enumerate(samples):
            where = f'{folder.name}, {split}, image {number}'
            if number == size:
                raise ConfigError(f'{where}: there are more than the {size} images that were expected')
            if not 0 <= label < num_classes:
                raise ConfigError(f'{where}: label {label} is not in [0, {num_classes})')
            name = f'{number:06d}.png'
            _as_rgb(image, where).save(partial / name)
            lines.append(f'images/{split}/{name} {int(label)}\n')
            if progress:
                progress(split, number + 1, size)
        if len(lines) != size:
            raise ConfigError(f'{folder.name}, {split}: {len(lines)} images, expected {size}')
        partial.rename(final)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    write_atomically(''.join(lines).encode(), folder / f'{split}.txt')


def _as_rgb(image: np.ndarray, where: str) -> Image.Image:
    image = np.asarray(image)
    if image.ndim == 3 and image.shape[2] == 1:
        image = image[:, :, 0]
    if image.dtype != np.uint8 or not (image.ndim == 2 or image.ndim == 3 and image.shape[2] == 3) or not image.size:
        raise ConfigError(f'{where}: shape {image.shape}, {image.dtype}; expected (H, W) or (H, W, 3), uint8')
    return Image.fromarray(image).convert('RGB')
