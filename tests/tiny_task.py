"""A classification task of a second, all of it real: mmpretrain, prompts that move, images on disk."""
from pathlib import Path

import numpy as np
from PIL import Image

TASK = """
default_scope = 'mmpretrain'
custom_imports = dict(imports=['mmprovpt'], allow_failed_imports=False)
model = dict(
    type='ImageClassifier',
    backbone=dict(
        type='mmprovpt.PromptedVisionTransformer',
        arch=dict(embed_dims=16, num_layers=2, num_heads=2, feedforward_channels=16), img_size=16, patch_size=8,
        prompts=dict(type='StaticPrompts', num_tokens=[4, 4])),
    head=dict(type='LinearClsHead', num_classes=2, in_channels=16),
    data_preprocessor=dict(num_classes=2))
pipeline = [dict(type='LoadImageFromFile'), dict(type='PackInputs')]
train_dataloader = dict(
    batch_size=4, dataset=dict(type='CustomDataset', data_root='ROOT', pipeline=pipeline),
    sampler=dict(type='DefaultSampler', shuffle=True))
val_dataloader = train_dataloader
val_evaluator = dict(type='Accuracy', topk=1)
val_cfg = dict()
train_cfg = dict(by_epoch=True, max_epochs=4, val_interval=4)
optim_wrapper = dict(optimizer=dict(type='SGD', lr=0.1))
default_hooks = dict(seed=dict(type='mmprovpt.IterationSeedHook'))
custom_hooks = [dict(type='mmprovpt.PromptRelocationHook', interval=1)]
"""


def write_images(folder: Path, seed: int = 0, count: int = 8) -> None:
    """Images of noise in two classes."""
    rng = np.random.default_rng(seed)
    for number in range(count):
        path = folder / str(number % 2) / f'{number}.png'
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (16, 16, 3), np.uint8)).save(path)


def write_task(folder: Path, more: str = '') -> Path:
    """The config, with more lines of it, and its images in ``folder/images``."""
    write_images(folder / 'images')
    (folder / 'task.py').write_text((TASK + more).replace('ROOT', str(folder / 'images')))
    return folder / 'task.py'
