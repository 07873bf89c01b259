# SPDX-License-Identifier: Apache-2.0
"""Pre-train the demo's narrow Swin, or its small ViT, on the material of the embedded data set.

The task is the classification of composited digits, asked twice of each output map:
which digit, or none, has what share of each cell (dense, as detection reads every position), and
which digit is in a given box (as a detector's second stage asks). The second question has the
shorter way to the answer; with the first alone, classes are not learned in minutes.
For the ViT the box is pooled to 3 x 3 and to 1 x 1 cells: from 7 x 7, which the Swin has, a linear
classifier puts the digit together itself, and no single patch need know it, as segmentation asks.
Scenes are composed on the fly from training digits and training backgrounds only.

    python tools/pretrain_miniature.py        # writes configs/demo/swin_mini_digits.pth
    python tools/pretrain_miniature.py vit    # writes configs/demo/vit_mini_digits.pth
"""
import argparse
import math
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn as nn
import torch.nn.functional as F
from dataset_converters.miniature import CLASSES, compose_scene
from mmdet.models.backbones import SwinTransformer
from mmpretrain.models.backbones import VisionTransformer
from mmpretrain.models.utils import build_2d_sincos_position_embedding
from torchvision.ops import masks_to_boxes, roi_align

from mmprovpt.files import write_atomically

ROOT = Path(__file__).resolve().parent.parent
WIDTH = 128  # of the ViT
# As in mmdet's data preprocessor, RGB.
MEAN = torch.tensor([123.675, 116.28, 103.53]).view(3, 1, 1)
STD = torch.tensor([58.395, 57.12, 57.375]).view(3, 1, 1)


class Recipe(NamedTuple):
    """What differs between the backbones.

    Attributes:
        build: Makes the backbone.
        widths: Of its output maps.
        maps: Names of its output maps: strides of a Swin, blocks (from 1) of a ViT.
        strides: Of its output maps, in px.
        size: Width and height of the images, in px.
        num_digits: Least and greatest number of digits in an image.
        grids: Cells that a box is pooled to, per side; one classifier for each.
    """
    build: Callable[[], nn.Module]
    widths: tuple
    maps: tuple
    strides: tuple
    size: tuple
    num_digits: tuple
    grids: tuple


def build_swin():
    # PyTorch's own initialisation: the std of 0.02 that suits a width of 96 starts a width of 24
    # too close to zero for a run of minutes.
    return SwinTransformer(embed_dims=24, drop_path_rate=0.)


def build_vit():
    # Patches of 8 px overlap: each is embedded with its surroundings, 24 x 24 px.
    arch = dict(embed_dims=WIDTH, num_layers=6, num_heads=4, feedforward_channels=512)
    backbone = VisionTransformer(arch, img_size=(128, 160), patch_size=8, out_indices=(2, 3, 4, 5), out_type='featmap',
                                 final_norm=False, patch_cfg=dict(kernel_size=24, padding=8))
    # With positions as waves and keys equal to queries, attention starts with patches that are near and alike, instead
    # of uniform. MMPretrain's positions go down the columns first, hence the sides in this order.
    backbone.pos_embed.data = build_2d_sincos_position_embedding((20, 16), WIDTH, temperature=20, cls_token=True)
    for layer in backbone.layers:
        weight, bias = layer.attn.qkv.weight.data, layer.attn.qkv.bias.data
        weight[:WIDTH] *= 1.7
        weight[WIDTH:2 * WIDTH] = weight[:WIDTH]
        bias[:2 * WIDTH] = 0
    return backbone


RECIPES = dict(
    # 112 px fill the 7x7 windows of the first three stages without padding.
    swin=Recipe(build_swin, (24, 48, 96, 192), ('4', '8', '16', '32'), (4, 8, 16, 32), (112, 112), (3, 5), (7, )),
    # The size of the data set's images, as position embeddings do not stretch well. They are
    # crowded: an image with many digits costs as much as one with few and teaches more.
    vit=Recipe(build_vit, (WIDTH, ) * 4, ('3', '4', '5', '6'), (8, ) * 4, (160, 128), (6, 10), (3, 1)))


class DigitClassifier(nn.Module):
    """A backbone with linear classifiers per output map, one for cells and one for each grid of boxes."""

    def __init__(self, recipe):
        super().__init__()
        self.backbone, self.strides, self.grids = recipe.build(), recipe.strides, recipe.grids
        self.cell_heads = nn.ModuleList(nn.Conv2d(c, len(CLASSES) + 1, 1) for c in recipe.widths)
        self.box_heads = nn.ModuleList(
            nn.Linear(c * grid**2, len(CLASSES)) for grid in recipe.grids for c in recipe.widths)

    def forward(self, images, boxes):
        """Classify cells and boxes.

        Args:
            images (Tensor): Normalised, float32, shape (B, 3, H, W).
            boxes (list[Tensor]): Corners x1, y1, x2, y2 per image in px, float32, shape (N_b, 4).

        Returns:
            tuple[list[Tensor], list[Tensor]]: Logits per output map: (B, 11, H / s, W / s) for
            cells, where 10 is background, and (sum of N_b, 10) for boxes, there grid by grid.
        """
        maps = self.backbone(images)
        cells = [head(x) for head, x in zip(self.cell_heads, maps, strict=True)]
        pooled = [roi_align(x, boxes, grid, 1 / stride, sampling_ratio=2, aligned=True)
                  for grid in self.grids for x, stride in zip(maps, self.strides, strict=True)]
        return cells, [head(x.flatten(1)) for head, x in zip(self.box_heads, pooled, strict=True)]


def compose_batch(rng, split, batch_size, recipe):
    """Compose scenes.

    Returns:
        tuple: Normalised images, float32 (B, 3, H, W); class maps, int64 (B, H, W), where 10 is
        background; boxes, B times float32 (N_b, 4); their classes, int64 (sum of N_b,).
    """
    scenes = [compose_scene(rng, split, recipe.size, recipe.num_digits) for _ in range(batch_size)]
    images = torch.from_numpy(np.stack([scene.image for scene in scenes])).permute(0, 3, 1, 2)
    classes = np.full((batch_size, *recipe.size[::-1]), len(CLASSES))
    for class_map, scene in zip(classes, scenes, strict=True):
        for mask, label in zip(scene.masks, scene.labels, strict=True):
            class_map[mask] = label
    last_pixel_to_edge = torch.tensor([0., 0., 1., 1.])
    boxes = [masks_to_boxes(torch.from_numpy(scene.masks)) + last_pixel_to_edge
             for scene in scenes]
    labels = torch.from_numpy(np.concatenate([scene.labels for scene in scenes]))
    return (images.float() - MEAN) / STD, torch.from_numpy(classes), boxes, labels


def shares_of_cells(classes, recipe):
    """Return, per output map, what share of each cell every class has: float32 (B, 11, H / s, W / s)."""
    pixels = F.one_hot(classes, len(CLASSES) + 1).permute(0, 3, 1, 2).float()
    pooled = {stride: F.avg_pool2d(pixels, stride, ceil_mode=True) for stride in set(recipe.strides)}
    return [pooled[stride] for stride in recipe.strides]


def cell_loss(logits, shares):
    """Cross entropy with each cell's share of every class.

    Cells with a digit count up to ten times as much as those without, as they are few.
    """
    weight = 0.1 + 0.9 * (4 * (1 - shares[:, -1])).clamp(max=1)
    loss = -(shares * logits.log_softmax(1)).sum(1)
    return (loss * weight).sum() / weight.sum()


def train(model, recipe, args):
    """Train for `args.iters` iterations: AdamW, linear warm-up, cosine decay."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=args.lr, weight_decay=0.05)
    warmup = max(1, args.iters // 40)
    scheduler = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda i: min((i + 1) / warmup, 0.5 + 0.5 * math.cos(math.pi * i / args.iters)))
    rng = np.random.default_rng(args.seed)
    start, recent = time.time(), []
    for i in range(1, args.iters + 1):
        images, classes, boxes, labels = compose_batch(rng, 'train', args.batch_size, recipe)
        cells, digits = model(images, boxes)
        shares = shares_of_cells(classes, recipe)
        loss = sum(cell_loss(*pair) for pair in zip(cells, shares, strict=True))
        loss = loss + sum(F.cross_entropy(x, labels) for x in digits)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.)
        optimizer.step()
        scheduler.step()
        recent = recent[-49:] + [(loss.item(), *accuracy(cells, shares, digits, labels))]
        if i % 50 == 0 or i == args.iters:
            mean_loss, *right = np.nanmean(recent, axis=0)
            eta = (time.time() - start) / i * (args.iters - i)
            print(f'iter {i}/{args.iters}  eta {eta:.0f} s  loss {mean_loss:.2f}  accuracy '
                  + ' '.join(f'{value:.2f}' for value in right), flush=True)


def accuracy(cells, shares, digits, labels):
    """Return the shares of digits that are classified rightly.

    First, per output map, by cell, of the cells that digits cover by half or more, among the digits (NaN where there
    is none); then by box, per grid and output map.
    """
    by_cell = []
    for logits, share in zip(cells, shares, strict=True):
        covered = share[:, -1] <= 0.5
        right = logits[:, :-1].argmax(1) == share[:, :-1].argmax(1)
        by_cell.append(right[covered].float().mean().item())
    return np.array(by_cell + [(x.argmax(1) == labels).float().mean().item() for x in digits])


@torch.no_grad()
def evaluate(model, recipe, num_batches, args):
    """Return what `accuracy` does, the mean of validation batches, by name."""
    model.eval()
    rng = np.random.default_rng(args.seed)
    values = []
    for _ in range(num_batches):
        images, classes, boxes, labels = compose_batch(rng, 'val', args.batch_size, recipe)
        cells, digits = model(images, boxes)
        values.append(accuracy(cells, shares_of_cells(classes, recipe), digits, labels))
    names = [f'{kind}, output map {name}'
             for kind in ('cell', *(f'box of {grid} x {grid}' for grid in recipe.grids)) for name in recipe.maps]
    return dict(zip(names, np.nanmean(values, 0).round(4).tolist(), strict=True))


def save(backbone, meta, path):
    """Write the backbone in half precision under the codebase's keys, all or nothing."""
    state = {f'backbone.{key}': value.half() if value.is_floating_point() else value
             for key, value in backbone.state_dict().items()}
    write_atomically(partial(torch.save, dict(meta=meta, state_dict=state)), path)


def parse_args():
    parser = argparse.ArgumentParser(description='Pre-train the backbones of the demos')
    parser.add_argument('model', nargs='?', choices=list(RECIPES), default='swin', help='default: %(default)s')
    parser.add_argument('--out', type=Path, help='default: configs/demo/<model>_mini_digits.pth')
    parser.add_argument('--iters', type=int, default=1200)
    parser.add_argument('--batch-size', type=int, default=12)
    parser.add_argument('--lr', type=float, default=1.5e-3)
    parser.add_argument('--seed', type=int, default=0)
    return parser.parse_args()


def main():
    args = parse_args()
    out = args.out or ROOT / f'configs/demo/{args.model}_mini_digits.pth'
    recipe = RECIPES[args.model]
    torch.manual_seed(args.seed)
    model = DigitClassifier(recipe)
    start = time.time()
    train(model, recipe, args)
    seconds = time.time() - start
    right = evaluate(model, recipe, 50, args)
    for name, value in right.items():
        print(f'validation digits classified rightly by {name}: {value:.3f}')
    meta = dict(script='tools/pretrain_miniature.py', task='classification of composited digits',
                seed=args.seed, iters=args.iters, batch_size=args.batch_size, lr=args.lr,
                accuracy=right,
                seconds=round(seconds), cpu_seconds=round(time.process_time()))
    save(model.backbone, meta, out)
    print(f'{out}: {out.stat().st_size / 2**20:.1f} MiB, trained in {seconds:.0f} s')


if __name__ == '__main__':
    main()
