#!/usr/bin/env python
"""Write tasks whose best distribution of prompts is known: a teacher with prompts in some blocks labels real images.

    python benchmarks/study/planted.py --data data --weights checkpoints/vit_s14_dinov2_42.pth

The images are those of miniature-vtab/category. The teacher is the frozen backbone with a layout of prompts as they are
drawn; a label is the largest of ten random projections of what its prompts change, standardised: its class token less
that of the plain backbone. So only who reads prompts where the teacher has them can tell the labels well, as far as the
place matters: study.py's experiment `layouts` checks that first.
"""
import argparse
from pathlib import Path

import numpy as np
import torch
from experiments import LAYOUTS
from PIL import Image
from torch import Tensor, nn

from mmprovpt.files import write_atomically
from mmprovpt.prompts import find_prompts
from mmprovpt.sweep import read_task

ROOT = Path(__file__).resolve().parents[2]
SPLITS = ('train800', 'val200', 'train800val200', 'test')
MEAN, STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)


def read_images(folder: Path, names: list[str]) -> Tensor:
    """(N, 3, 42, 42) float32, normalised as DINOv2's."""
    images = np.stack([np.asarray(Image.open(folder / name).convert('RGB').resize((42, 42), Image.Resampling.BILINEAR))
                       for name in names])
    x = torch.from_numpy(images).permute(0, 3, 1, 2).float()
    return (x - torch.tensor(MEAN)[:, None, None]) / torch.tensor(STD)[:, None, None]


@torch.no_grad()
def features(backbone: nn.Module, images: Tensor) -> Tensor:
    """(N, C) class tokens."""
    return torch.cat([backbone(part)[-1] for part in images.split(250)])


def build(weights: Path, layout: list[int]) -> nn.Module:
    """The study's backbone with so many prompts in each block."""
    from mmengine.registry import init_default_scope
    from mmpretrain.registry import MODELS
    cfg = read_task(str(ROOT / 'configs/miniature_vtab/vpt.py'), None, 'category').model.backbone
    cfg.prompts.num_tokens = layout
    cfg.init_cfg.checkpoint = str(weights)
    init_default_scope('mmpretrain')
    backbone = MODELS.build(cfg)
    backbone.init_weights()
    find_prompts(backbone).reset_parameters()  # as they are drawn, and meant so
    return backbone.eval()


def label(weights: Path, layout: list[int], images: Tensor, seed: int) -> Tensor:
    """(N,) int64 in [0, 10)."""
    torch.manual_seed(seed)
    backbone = build(weights, layout)
    with_prompts = features(backbone, images)
    with find_prompts(backbone).without(*range(sum(layout))):
        change = with_prompts - features(backbone, images)
    change = (change - change.mean(0)) / change.std(0)
    return (change @ torch.randn(change.shape[1], 10)).argmax(1)


def write(task: str, args: argparse.Namespace) -> None:
    """The lists of a task; its images stay where they are."""
    category, folder = args.data / 'miniature-vtab/category', args.data / 'planted' / task
    folder.mkdir(parents=True, exist_ok=True)
    lists = {split: (category / f'{split}.txt').read_text(encoding='utf-8').splitlines() for split in SPLITS}
    names = {split: [line.rsplit(None, 1)[0] for line in lines] for split, lines in lists.items()}
    every = [*names['train800val200'], *names['test']]
    labels = dict(zip(every, label(args.weights, LAYOUTS[task], read_images(category, every), args.seed).tolist()))
    for split in SPLITS:
        lines = ''.join(f'../../miniature-vtab/category/{name} {labels[name]}\n' for name in names[split])
        write_atomically(lines.encode(), folder / f'{split}.txt')
    shares = np.bincount(list(labels.values()), minlength=10) / len(labels)
    print(f'{folder}: classes have {shares.min():.0%} to {shares.max():.0%} of the images')


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--data', type=Path, default=ROOT / 'data')
    parser.add_argument('--weights', type=Path, default=ROOT / 'checkpoints/vit_s14_dinov2_42.pth')
    parser.add_argument('--seed', type=int, default=0, help='of the teachers')
    args = parser.parse_args()
    for task in LAYOUTS:
        write(task, args)


if __name__ == '__main__':
    main()
