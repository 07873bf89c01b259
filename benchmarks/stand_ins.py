"""Noise in the layouts of data sets that nobody may pass on: commands are carried out on it, and no result counts."""
import json
import os
from pathlib import Path

import numpy as np
from PIL import Image

from mmprovpt.datasets.fgvc_tasks import find_fgvc_task
from mmprovpt.datasets.vtab1k_tasks import BY_NAME, SPLITS


def pixels(height: int, width: int, seed: int = 0) -> np.ndarray:
    """(height, width, 3) uint8."""
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


def write_ade20k(root: Path) -> Path:
    """Images with labels 0 (other), 1 and 2; one of the two for training is labelled 'other' throughout."""
    for split, count in (('training', 2), ('validation', 1)):
        for number in range(count):
            for kind in ('images', 'annotations'):
                (root / kind / split).mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels(70, 90, number)).save(root / f'images/{split}/{number}.jpg')
            labels = np.zeros((70, 90), np.uint8)
            if split == 'validation' or number:
                labels[:40, 10:], labels[40:] = 1, 2
            Image.fromarray(labels).save(root / f'annotations/{split}/{number}.png')
    return root


def write_coco(root: Path) -> Path:
    """Three images of 64 x 80 px for each split, the last without a single object."""
    import mmdet.datasets
    names = mmdet.datasets.CocoDataset.METAINFO['classes']
    images = [dict(id=number, file_name=f'{number}.jpg', height=64, width=80) for number in range(3)]
    boxes = [(0, 3, (4, 4, 30, 30)), (0, 7, (40, 10, 30, 40)), (1, 3, (10, 20, 50, 40))]
    annotations = [
        dict(id=i, image_id=image, category_id=category, bbox=[x, y, w, h], area=w * h, iscrowd=0,
             segmentation=[[x, y, x + w, y, x + w, y + h, x, y + h]])
        for i, (image, category, (x, y, w, h)) in enumerate(boxes, 1)]
    categories = [dict(id=number, name=name) for number, name in enumerate(names)]
    (root / 'annotations').mkdir(parents=True)
    for split in ('train2017', 'val2017'):
        (root / split).mkdir()
        for image in images:
            Image.fromarray(pixels(64, 80, image['id'])).save(root / split / image['file_name'])
        (root / f'annotations/instances_{split}.json').write_text(
            json.dumps(dict(images=images, annotations=annotations, categories=categories)), encoding='utf-8')
    return root


def write_vtab1k(root: Path, task: str) -> Path:
    """Lists as long as the task's, of one image for each class."""
    folder, entry = root / task, BY_NAME[task]
    (folder / 'images').mkdir(parents=True)
    for label in range(entry.num_classes):
        Image.fromarray(pixels(32, 32, label)).save(folder / f'images/{label}.png')
    for split, size in SPLITS.items():
        labels = (number % entry.num_classes for number in range(size or entry.num_test))
        (folder / f'{split}.txt').write_text(
            ''.join(f'images/{label}.png {label}\n' for label in labels), encoding='utf-8')
    return folder


def write_fgvc(root: Path, task: str) -> Path:
    """VPT's lists in JSON, as long as the task's; its images are names of one file."""
    entry = find_fgvc_task(task)
    folder = root / entry.folder
    (folder / entry.images).mkdir(parents=True)
    Image.fromarray(pixels(32, 32)).save(folder / entry.images / 'one.jpg')
    for split, size in (('train', entry.num_trainval - entry.num_classes), ('val', entry.num_classes),
                        ('test', entry.num_test)):
        labels = {f'{split}_{number}.jpg': number % entry.num_classes for number in range(size)}
        for name in labels:
            os.link(folder / entry.images / 'one.jpg', folder / entry.images / name)
        (folder / f'{split}.json').write_text(json.dumps(labels), encoding='utf-8')
    return folder
