# SPDX-License-Identifier: Apache-2.0
"""A miniature segmentation data set, made on the spot from what scikit-learn bundles.

Handwritten digits (`load_digits`) are pasted on crops of two photographs (`load_sample_images`).
The result is an ordinary COCO data set, JPEG files and annotations with run-length masks; the same
scenes in ADE20k's layout, JPEG files and label maps of digits and background; and an image folder
for classification, scenes of a single digit.

Training and validation share nothing: every fifth digit sample and the right part of the
photographs belong to validation. Every image draws from a generator seeded by (seed, split, image
number), so the same bytes come out each time and image 3 does not depend on how many follow it.
"""
import functools
import hashlib
import itertools
import json
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

# scikit-learn is imported where it is needed: finding the data complete must not take as long as
# that import.

CLASSES = tuple('0123456789')
REGIONS = ('sky', 'trees', 'leaves')  # of the background; the lake counts as sky
LABELS = REGIONS + CLASSES  # of the label maps: class i has the value i + 1, and 0 is none of them
SPLITS = ('train', 'val')
ADE_SPLITS = dict(train='training', val='validation')
MANIFEST = 'miniature.json'

_VERSION = 2  # raise it when the same parameters give other bytes or files (2: label maps, folder)
_SPLIT_COLUMN = 440  # photographs are 640 px wide; train crops lie left of this column
_VAL_EVERY = 5
_FOLDER = dict(size=(56, 56), num_digits=(1, 1), digit_size=(28, 52))  # scenes of the image folder
_PER_SCENE = 8  # as many images in the image folder for each of the others
_INK = 6.  # of 16 grey levels: from here on an upscaled pixel is digit
_MIN_VISIBLE = 0.6  # no digit may lose more than the rest to the digits pasted over it
_TRIES = 20
# Of the photographs in load_sample_images' order: a channel (of RGB), up to what value a region has
# it, from what value on another has it, and these regions. In between nobody knows: label 0.
_REGION_RULES = ((2, 124, 166, 'trees', 'sky'), (0, 89, 256, 'leaves', None))
# The pagoda in the first photograph, (x, y) in px; only training would show it, so it has label 0.
_PAGODA = ((55, 280), (75, 215), (85, 110), (190, 25), (220, 25), (335, 115), (345, 245), (375, 345),
           (320, 427), (190, 427), (70, 345))


class Scene(NamedTuple):
    """One image with its instances.

    Attributes:
        image (np.ndarray): RGB, uint8, shape (H, W, 3).
        masks (np.ndarray): Visible pixels of each instance, bool, shape (N, H, W). They are
            disjoint, as later digits hide earlier ones.
        labels (np.ndarray): Class index of each instance, int64, shape (N,).
        label_map (np.ndarray): What each pixel shows, uint8, shape (H, W): 1 + index in LABELS, or
            0 for what has no label (the pagoda, the flower, blurred borders of regions).
    """
    image: np.ndarray
    masks: np.ndarray
    labels: np.ndarray
    label_map: np.ndarray


@functools.cache
def load_digit_images(split: str) -> tuple[np.ndarray, np.ndarray]:
    """Load the digits of one split.

    Args:
        split (str): 'train' or 'val'.

    Returns:
        tuple[np.ndarray, np.ndarray]: Grey levels 0..16, float32, shape (N, 8, 8), and class
        indices, int64, shape (N,).

    Raises:
        ValueError: If the split has another name.
    """
    from sklearn.datasets import load_digits
    _check_split(split)
    digits = load_digits()
    is_val = np.arange(len(digits.target)) % _VAL_EVERY == 0
    chosen = is_val if split == 'val' else ~is_val
    return digits.images[chosen].astype(np.float32), digits.target[chosen].astype(np.int64)


@functools.cache
def load_backgrounds(split: str) -> tuple[np.ndarray, ...]:
    """Load that part of each bundled photograph which belongs to one split.

    Args:
        split (str): 'train' or 'val'.

    Returns:
        tuple[np.ndarray]: RGB images, uint8, shape (427, 440, 3) for train and (427, 200, 3) for
        val.

    Raises:
        ValueError: If the split has another name.
    """
    from sklearn.datasets import load_sample_images
    _check_split(split)
    return tuple(photo[:, _columns(split)] for photo in load_sample_images().images)


@functools.cache
def load_regions(split: str) -> tuple[np.ndarray, ...]:
    """Label the regions of what `load_backgrounds` loads, by brightness in one channel.

    Args:
        split (str): 'train' or 'val'.

    Returns:
        tuple[np.ndarray]: Label maps, uint8: 1 + index in REGIONS, or 0 for none; shapes (H, W) of
        the backgrounds.

    Raises:
        ValueError: If the split has another name.
    """
    from sklearn.datasets import load_sample_images
    _check_split(split)
    maps = []
    for photo, (channel, low, high, dark, bright) in zip(load_sample_images().images, _REGION_RULES, strict=True):
        values = np.asarray(Image.fromarray(photo).filter(ImageFilter.GaussianBlur(2)))[..., channel]
        regions = np.zeros(values.shape, np.uint8)
        regions[values <= low] = 1 + REGIONS.index(dark)
        if bright:
            regions[values >= high] = 1 + REGIONS.index(bright)
        maps.append(regions)
    pagoda = Image.new('1', maps[0].shape[::-1])
    ImageDraw.Draw(pagoda).polygon(_PAGODA, fill=1)
    maps[0][np.array(pagoda)] = 0
    return tuple(regions[:, _columns(split)] for regions in maps)


def compose_scene(rng: np.random.Generator,
                  split: str,
                  size: tuple[int, int] = (160, 128),
                  num_digits: tuple[int, int] = (2, 4),
                  digit_size: tuple[int, int] = (28, 60)) -> Scene:
    """Paste a few digits on a crop of a photograph.

    Args:
        rng (np.random.Generator): The only source of chance.
        split (str): 'train' or 'val'; where digits and photographs are taken from.
        size (tuple[int, int]): Width and height of the image, in px.
        num_digits (tuple[int, int]): Least and greatest number of digits. A digit that finds no
            place without hiding others is left out, but never the first.
        digit_size (tuple[int, int]): Least and greatest side of the square that a digit's 8x8 grid
            is scaled to, in px; it must not exceed the image.

    Returns:
        Scene: The image with its instances, at least one.

    Raises:
        ValueError: If the split has another name, or a digit would not fit in the image.
    """
    if digit_size[1] > min(size):
        raise ValueError(f'digit_size {digit_size} does not fit in an image of {size} px; '
                         f'make the digits at most {min(size)} px')
    image, label_map = _crop_background(rng, split, size)
    grids, targets = load_digit_images(split)
    masks, areas, labels = [], [], []
    for _ in range(rng.integers(num_digits[0], num_digits[1] + 1)):
        chosen = rng.integers(len(grids))
        ink = _draw_digit(grids[chosen], rng.integers(digit_size[0], digit_size[1] + 1))
        mask = _find_place(rng, ink > _INK, masks, areas, size)
        if mask is None:
            continue
        for earlier in masks:
            earlier &= ~mask
        image[mask] = _choose_colour(rng, image, mask)
        label_map[mask] = 1 + len(REGIONS) + targets[chosen]
        masks.append(mask)
        areas.append(mask.sum())
        labels.append(targets[chosen])
    return Scene(image, np.stack(masks), np.asarray(labels, dtype=np.int64), label_map)


def _check_split(split: str) -> None:
    if split not in SPLITS:
        raise ValueError(f'split must be one of {SPLITS}, but got {split!r}')


def _columns(split):
    return slice(None, _SPLIT_COLUMN) if split == 'train' else slice(_SPLIT_COLUMN, None)


def _crop_background(rng, split, size):
    """Crop a random part, up to 1.25 times too large, of a random photograph; maybe mirror it.

    Returns (H, W, 3) image and (H, W) labels of its regions.
    """
    photos = load_backgrounds(split)
    chosen = rng.integers(len(photos))
    photo, regions = photos[chosen], load_regions(split)[chosen]
    scale = rng.uniform(1, 1.25)
    width, height = (min(round(side * scale), limit)
                     for side, limit in zip(size, photo.shape[1::-1], strict=True))
    left = rng.integers(photo.shape[1] - width + 1)
    top = rng.integers(photo.shape[0] - height + 1)
    image, label_map = (
        np.array(Image.fromarray(pixels[top:top + height, left:left + width]).resize(size, how))
        for pixels, how in ((photo, Image.Resampling.BILINEAR), (regions, Image.Resampling.NEAREST)))
    return (image[:, ::-1].copy(), label_map[:, ::-1].copy()) if rng.random() < 0.5 else (image, label_map)


def _draw_digit(grid, side):
    """Upscale an 8x8 grid smoothly to (side, side) and cut away the empty border."""
    side = int(side)
    # The blank frame keeps strokes on the border of the grid round instead of cut off.
    framed = Image.fromarray(np.pad(grid, 1))
    ink = np.array(framed.resize((side * 10 // 8, side * 10 // 8), Image.Resampling.BICUBIC))
    rows, columns = (np.flatnonzero((ink > _INK).any(axis)) for axis in (1, 0))
    ink = ink[rows[0]:rows[-1] + 1, columns[0]:columns[-1] + 1]
    return ink[:side, :side]


def _find_place(rng, shape, masks, areas, size):
    """Return `shape` somewhere on an empty canvas where all earlier digits stay visible."""
    for _ in range(_TRIES):
        left = rng.integers(size[0] - shape.shape[1] + 1)
        top = rng.integers(size[1] - shape.shape[0] + 1)
        mask = np.zeros(size[::-1], dtype=bool)
        mask[top:top + shape.shape[0], left:left + shape.shape[1]] = shape
        if all((earlier & ~mask).sum() >= _MIN_VISIBLE * area
               for earlier, area in zip(masks, areas, strict=True)):
            return mask
    return None


def _choose_colour(rng, image, mask):
    """Of six random colours return the one farthest from what the digit will cover."""
    colours = rng.integers(0, 256, size=(6, 3))
    distance = np.abs(colours - image[mask].mean(0)).sum(1)
    return colours[distance.argmax()].astype(np.uint8)


def build_miniature(out: os.PathLike,
                    num_train: int = 128,
                    num_val: int = 40,
                    size: tuple[int, int] = (160, 128),
                    seed: int = 0,
                    progress: Callable[[int, int], None] | None = None) -> bool:
    """Write the data set, unless it is there already.

    The layout is COCO's, `annotations/instances_{train,val}.json` and `{train,val}/*.jpg`; for the
    same scenes ADE20k's, `images/{training,validation}/*.jpg` and
    `annotations/{training,validation}/*.png` (uint8; 1 + index in LABELS, 0 for no label); for
    classification `digits/{train,val}/<digit>/*.jpg`, eight of 56 x 56 px for each scene; and
    `miniature.json`, which says how it was made and holds each file's hash. Everything is written
    to a temporary directory beside `out`, which is renamed at the end: `out`
    is either complete or not there. A damaged data set is replaced as a whole.

    Args:
        out (path): Where the data set shall be.
        num_train (int): Number of training images.
        num_val (int): Number of validation images.
        size (tuple[int, int]): Width and height of the images, in px.
        seed (int): Seed; another one gives other scenes from the same digits and photographs.
        progress (callable, optional): Called with (images done, images in all).

    Returns:
        bool: Whether anything was written.

    Raises:
        ValueError: If a number of images is not positive.
        FileExistsError: If `out` is not empty and holds no miniature data set.
    """
    out = Path(out)
    counts = dict(train=num_train, val=num_val)
    if min(counts.values()) < 1:
        raise ValueError(f'each split needs at least one image, but got {counts}')
    parameters = dict(version=_VERSION, counts=counts, size=list(size), seed=seed)
    if not find_damage(out, parameters):
        return False
    if out.exists() and not (out / MANIFEST).exists() and (not out.is_dir() or any(out.iterdir())):
        raise FileExistsError(f'{out} exists and is no miniature data set (it has no {MANIFEST}); '
                              'move it away or choose another place')
    out.parent.mkdir(parents=True, exist_ok=True)
    building = Path(tempfile.mkdtemp(prefix=f'.{out.name}-', dir=out.parent))
    try:
        # mkdtemp makes it private; the data set shall have the permissions of any new directory.
        building.chmod(0o777 & ~_umask())
        done = itertools.count(1)
        for split in SPLITS:
            _write_folder(building / 'digits' / split, split, counts[split] * _PER_SCENE, seed)
            for _ in _write_split(building, split, counts[split], size, seed):
                if progress is not None:
                    progress(next(done), num_train + num_val)
        _write_json(building / MANIFEST, dict(parameters=parameters, sha256=_hash_files(building)))
        _swap_in(building, out, parameters)
    finally:
        shutil.rmtree(building, ignore_errors=True)
    return True


def find_damage(root: os.PathLike, parameters: dict | None = None) -> list[str]:
    """Say what keeps a directory from being a complete miniature data set.

    Args:
        root (path): The directory.
        parameters (dict, optional): What the manifest must say; None takes what it says.

    Returns:
        list[str]: One sentence per fault; empty if the data set is complete.
    """
    root = Path(root)
    try:
        manifest = json.loads((root / MANIFEST).read_text(encoding='utf-8'))
        expected = manifest['sha256']
    except FileNotFoundError:
        return [f'{root / MANIFEST} is missing']
    except (ValueError, KeyError, TypeError, OSError) as error:
        return [f'{root / MANIFEST} cannot be read: {error!r}']
    if parameters is not None and manifest.get('parameters') != parameters:
        return [f'{root} was made with {manifest.get("parameters")}, not with {parameters}']
    found = _hash_files(root)
    faults = [f'{root / name} is missing' for name in expected if name not in found]
    return faults + [f'{root / name} is not as it was written' for name, digest in expected.items()
                     if found.get(name, digest) != digest]


def _write_split(root, split, count, size, seed):
    """Write images, annotations and label maps of one split; yield after each image."""
    folders = [root / split] + [root / name / ADE_SPLITS[split] for name in ('images', 'annotations')]
    for folder in folders:
        folder.mkdir(parents=True)
    images, annotations = [], []
    for number in range(count):
        rng = np.random.default_rng([seed, SPLITS.index(split), number])
        scene = compose_scene(rng, split, size)
        name = f'{number + 1:06d}.jpg'
        Image.fromarray(scene.image).save(folders[0] / name, quality=92)
        shutil.copyfile(folders[0] / name, folders[1] / name)
        Image.fromarray(scene.label_map).save((folders[2] / name).with_suffix('.png'))
        images.append(dict(id=number + 1, file_name=name, width=size[0], height=size[1]))
        for mask, label in zip(scene.masks, scene.labels, strict=True):
            annotations.append(dict(id=len(annotations) + 1, image_id=number + 1,
                                    **_annotate(mask, int(label))))
        yield
    categories = [dict(id=i + 1, name=name) for i, name in enumerate(CLASSES)]
    info = dict(description='handwritten digits on photographs, both bundled with scikit-learn')
    _write_json(root / 'annotations' / f'instances_{split}.json',
                dict(info=info, images=images, annotations=annotations, categories=categories))


def _write_folder(root, split, count, seed):
    """Write images of one digit each, into a folder for each class."""
    for name in CLASSES:
        (root / name).mkdir(parents=True)
    for number in range(count):
        # Not the generators of the scenes.
        scene = compose_scene(np.random.default_rng([seed, SPLITS.index(split), number, 1]), split, **_FOLDER)
        path = root / CLASSES[scene.labels[0]] / f'{number + 1:06d}.jpg'
        Image.fromarray(scene.image).save(path, quality=92)


def _annotate(mask, label):
    """Describe one visible mask, bool (H, W), in COCO's terms; the box is [x, y, w, h] in px."""
    from pycocotools import mask as coco_mask
    rle = coco_mask.encode(np.asfortranarray(mask, dtype=np.uint8))
    return dict(category_id=label + 1, iscrowd=0, area=float(coco_mask.area(rle)),
                bbox=coco_mask.toBbox(rle).tolist(),
                segmentation=dict(size=list(rle['size']), counts=rle['counts'].decode()))


def _write_json(path, content):
    path.write_text(json.dumps(content, separators=(',', ':')), encoding='utf-8')


def _hash_files(root):
    """Map each data file's path under `root` to its SHA-256."""
    return {
        path.relative_to(root).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for folder in ('annotations', 'images', 'digits', *SPLITS)
        for path in sorted((root / folder).rglob('*')) if path.is_file()
    }


def _swap_in(building, out, parameters):
    """Give the finished directory its name, unless another process has just done the same."""
    if not find_damage(out, parameters):
        return
    if out.exists():
        retired = building.with_name(building.name + '-old')
        out.rename(retired)
        shutil.rmtree(retired)
    try:
        building.rename(out)
    except OSError:
        if find_damage(out, parameters):
            raise


def _umask():
    mask = os.umask(0)
    os.umask(mask)
    return mask
