"""Several sets of prompts as one figure: where their prompts lie, and how unlike they are."""
from pathlib import Path

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from mmprovpt.errors import ConfigError
from mmprovpt.prompts import PromptSet, compare_prompts

from .relocation import save


def plot_prompt_sets(sets: dict[str, PromptSet], path: str | Path) -> Path:
    """Draw the number of prompts in each block of each set and, below, the distance of each set from the first.

    Args:
        sets: One or more by name, of one form, for one backbone.
        path: PNG to write; its folder must exist.

    Returns:
        ``path``.

    Raises:
        ConfigError: There is none, or they cannot be compared (see :func:`mmprovpt.prompts.compare_prompts`).
    """
    if not sets:
        raise ConfigError('there is no set of prompts to draw')
    first, *others = sets
    compared = {name: compare_prompts(sets[first], sets[name]) for name in sets}
    counts = np.stack([each.counts[1].numpy() for each in compared.values()])
    blocks = np.arange(counts.shape[1])
    figure = Figure(figsize=(2 + 0.35 * len(blocks), 2 + 0.3 * len(sets) + (2 if others else 0)), dpi=150,
                    layout='constrained')
    FigureCanvasAgg(figure)
    axes = figure.subplots(2 if others else 1, 1, squeeze=False, sharex='col')[:, 0]
    axes[0].imshow(counts, cmap='Blues', aspect='auto', vmin=0)
    axes[0].set_yticks(range(len(sets)), list(sets))
    axes[0].set_title('Prompts per block', fontsize=9)
    for (row, block), count in np.ndenumerate(counts):
        axes[0].text(block, row, count, ha='center', va='center', fontsize=7,
                     color='white' if count > 0.6 * counts.max() else 'black')
    for name in others:
        axes[1].plot(blocks, compared[name].distances.numpy(), marker='o', markersize=3, label=name)
    if others:
        axes[1].set_ylabel(f'1 - cosine to {first}', fontsize=8)
        axes[1].legend(fontsize=8)
    axes[-1].set_xticks(blocks)
    axes[-1].set_xlabel('Block')
    save(figure, Path(path))
    return Path(path)
