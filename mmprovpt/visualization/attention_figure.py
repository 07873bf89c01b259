"""What an image's queries look at, as one figure."""
import math
from pathlib import Path

import numpy as np
import torch.nn.functional as F
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from .attention import AttentionMaps
from .relocation import SKY_BLUE, VERMILION, save

MAPS_PER_ROW = 6


def plot_attention(maps: AttentionMaps, image: np.ndarray, path: str | Path, title: str = '') -> Path:
    """Draw the weight of prompts in each block, and for each block which patches are looked at (PRO-VPT Fig. 7 and ix).

    Each map has its own scale, from its least (dark) to its largest weight (bright); its title says how much of the
    attention goes to patches (the rest: class token and prompts).

    Args:
        maps: Of :func:`~mmprovpt.visualization.attention_maps`.
        image: (H, W, 3) uint8, RGB, as the backbone saw it.
        path: PNG to write; its folder must exist.
        title: Of the image.

    Returns:
        ``path``.
    """
    rows = math.ceil(len(maps.patches) / MAPS_PER_ROW)
    heights = [3.2, rows * (0.5 + 1.9 * image.shape[0] / image.shape[1])]  # inches
    figure = Figure(figsize=(12, sum(heights)), dpi=150, layout='constrained')
    FigureCanvasAgg(figure)
    parts = figure.subfigures(2, 1, height_ratios=heights) if rows else None
    top = figure if parts is None else parts[0]
    left, right = top.subplots(1, 2, width_ratios=[1, 3])
    left.imshow(image)
    left.set_axis_off()
    left.set_title(title, fontsize=10)
    _draw_prompts(right, maps)
    if rows:
        parts[1].suptitle('Its attention to patches, and their share of the whole', fontsize=10)
        grid = list(parts[1].subplots(rows, MAPS_PER_ROW, squeeze=False).flat)
        for axes in grid:
            axes.set_axis_off()
        for block, (axes, patches) in enumerate(zip(grid, maps.patches)):
            axes.imshow(image.mean(2), cmap='gray')
            size = image.shape[:2]
            smooth = F.interpolate(patches[None, None].float(), size, mode='bilinear')[0, 0]
            axes.imshow(smooth, cmap='inferno', alpha=0.7)
            axes.set_title(f'block {block}: {float(patches.sum()):.0%}', fontsize=10)
    save(figure, Path(path))
    return Path(path)


def _draw_prompts(axes, maps: AttentionMaps) -> None:
    """Bars: all prompts of a block; dots: each of them."""
    blocks = range(len(maps.prompts))
    axes.bar(blocks, [float(prompts.sum()) for prompts in maps.prompts],
             color=SKY_BLUE, alpha=0.6, label='all prompts')
    points = [(block, float(weight)) for block in blocks for weight in maps.prompts[block]]
    if points:
        axes.scatter(*zip(*points), s=16, color=VERMILION, linewidths=0, alpha=0.8, label='each prompt', zorder=3)
    who = 'the class token' if maps.patches else 'all queries (mean)'
    counts = [f'{block}\n({len(maps.prompts[block])})' for block in blocks]
    axes.set_xticks(list(blocks), counts, fontsize=9)
    axes.set(xlabel='Block (and its number of prompts)', ylabel='Attention weight', ylim=(0, None))
    axes.set_title(f'Attention of {who} to prompts', fontsize=10)
    axes.legend(fontsize=9, frameon=False)
