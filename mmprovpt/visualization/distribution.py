"""Heat map of the learned prompt distribution."""
import os
from pathlib import Path
from typing import Sequence, Union

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import TwoSlopeNorm
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

# More cells than this and a number in each would be too small to read.
MAX_ANNOTATED_PERIODS = 24
MAX_ANNOTATED_BLOCKS = 32


def plot_distribution(distributions: Sequence[Sequence[int]],
                      path: Union[str, Path],
                      title: str = 'Prompt distribution') -> Path:
    """Draw the number of prompts per block over the periods (001 Fig. 5 and viii) as a PNG.

    White is the initial distribution's mean, red more and blue fewer prompts. Few periods carry
    the counts as numbers too.

    Args:
        distributions (Sequence): P + 1 distributions of L counts each; the first is the initial
            one (period 0), entry p is the one after the relocation that closes period p.
        path (str or Path): File to write; its folder must exist.
        title (str): Title of the figure.

    Returns:
        Path: ``path``.

    Raises:
        ValueError: ``distributions`` is empty or its entries differ in length.
    """
    if len({len(counts) for counts in distributions}) != 1:
        lengths = [len(counts) for counts in distributions]
        raise ValueError(f'need distributions over the same blocks, got lengths {lengths}')
    counts = np.asarray(distributions).T  # (L, P + 1)
    num_blocks, num_periods = counts.shape
    # Wide enough for the periods, within what a page or a screen shows.
    width = float(np.clip(2.5 + 0.4 * num_periods, 5.5, 12))
    height = float(np.clip(1.6 + 0.28 * num_blocks, 3, 9))
    figure = Figure(figsize=(width, height), dpi=150, layout='constrained')
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    image = axes.imshow(
        counts, norm=_norm(counts), cmap='RdBu_r', aspect='auto', interpolation='nearest',
        origin='lower')
    axes.set(title=title, xlabel='Period', ylabel='Block')
    axes.xaxis.set_major_locator(_integers(20))
    axes.yaxis.set_major_locator(_integers(24))
    figure.colorbar(image, ax=axes, label='Number of prompts', ticks=_integers(10))
    if num_periods <= MAX_ANNOTATED_PERIODS and num_blocks <= MAX_ANNOTATED_BLOCKS:
        _annotate(axes, image, counts)
    _save(figure, Path(path))
    return Path(path)


def _integers(most: int) -> MaxNLocator:
    """Ticks at round whole numbers only, at most so many."""
    return MaxNLocator(nbins=most, integer=True, min_n_ticks=1, steps=[1, 2, 5, 10])


def _norm(counts: np.ndarray) -> TwoSlopeNorm:
    """Colours centred on the mean count: symmetric, except that the scale ends at 0 below."""
    centre = counts[:, 0].mean()
    reach = max(np.abs(counts - centre).max(), 1)
    below = min(reach, centre) or 1
    return TwoSlopeNorm(centre, centre - below, centre + reach)


def _annotate(axes, image, counts: np.ndarray) -> None:
    """Write each count into its cell, light on dark colours."""
    for (block, period), count in np.ndenumerate(counts):
        red, green, blue, _ = image.cmap(image.norm(count))
        luminance = 0.299 * red + 0.587 * green + 0.114 * blue
        axes.text(period, block, str(count), ha='center', va='center', fontsize=7,
                  color='black' if luminance > 0.5 else 'white')


def _save(figure: Figure, path: Path) -> None:
    """Write the whole file or none."""
    temporary = path.with_name(f'.{path.name}.tmp')
    figure.savefig(temporary, format='png')
    os.replace(temporary, path)
