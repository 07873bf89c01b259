"""The relocations of one or several runs as one figure."""
import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import TwoSlopeNorm
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, ScalarFormatter

from mmprovpt.files import write_atomically

from .runs import Run

# More cells than this and a number in each would be too small to read.
MAX_ANNOTATED_PERIODS = 24
MAX_ANNOTATED_BLOCKS = 32
# Periods of the running mean over rewards, which are noisy.
SMOOTHING = 10
CURVE_HEIGHT = 1.5  # inch
BLUE, SKY_BLUE, VERMILION = '#0072B2', '#56B4E9', '#D55E00'  # Okabe and Ito's, which colour-blind people tell apart
COLOURS = colormaps['RdBu_r'].with_extremes(bad='0.85')


def plot_relocation(runs: Sequence[Run], path: str | Path) -> Path:
    """Draw runs side by side as a PNG.

    From top to bottom, each over the periods: prompts per block (PRO-VPT Fig. 5; white is the initial mean, red more
    and blue fewer), mean idleness of each block's prompts (red hurts, blue helps, grey has none), reward, entropy of
    the policy. What no run has recorded is left out. Runs that start from the same number of prompts share their
    colours.

    Args:
        runs: One or more runs over the same number of blocks.
        path: File to write; its folder must exist.

    Returns:
        ``path``.

    Raises:
        ValueError: If there is no run, or the numbers of blocks differ.
    """
    save(_figure(runs), Path(path))
    return Path(path)


def relocation_image(run: Run, dpi: int = 70) -> np.ndarray:
    """What ``plot_relocation`` draws of one run, as an array (H, W, 3) uint8, RGB."""
    figure = _figure([run], dpi)
    figure.canvas.draw()
    return np.asarray(figure.canvas.buffer_rgba())[..., :3].copy()


def _figure(runs: Sequence[Run], dpi: int = 150) -> Figure:
    """The whole figure, see ``plot_relocation``."""
    blocks = {len(run.counts) for run in runs}
    if len(blocks) != 1:
        raise ValueError(f'need runs over the same number of blocks, got {[len(run.counts) for run in runs]}')
    panels = [panel for panel in PANELS if any(np.isfinite(panel.data(run)).any() for run in runs)]
    map_height = float(np.clip(0.8 + 0.24 * blocks.pop(), 1.6, 5.5))
    heights = [map_height if panel.is_map else CURVE_HEIGHT for panel in panels]
    figure = Figure(figsize=(_width(runs), sum(heights) + 0.5), dpi=dpi, layout='constrained')
    FigureCanvasAgg(figure)
    grid = figure.subplots(len(panels), len(runs), squeeze=False, sharex='col', height_ratios=heights)
    for panel, row in zip(panels, grid):
        panel.draw_row(figure, row, runs)
        row[0].set_ylabel(panel.label)
    for run, top, bottom in zip(runs, grid[0], grid[-1]):
        top.set_title(run.name, fontsize=11)
        bottom.set_xlabel('Period')
        bottom.set_xlim(-0.5, run.counts.shape[1] - 0.5)
        bottom.xaxis.set_major_locator(integers(10))
    figure.align_ylabels(grid[:, 0])
    return figure


class _Map:
    """Heat map block × period.

    Args:
        field: Of :class:`Run`, (L, columns).
        first: Period of the first column.
        colours: Label of the colour bar.
    """
    is_map = True
    label = 'Block'

    def __init__(self, field: str, first: int, colours: str) -> None:
        self.field = field
        self.first = first
        self.colours = colours

    def data(self, run: Run) -> np.ndarray:
        """(L, columns)."""
        return getattr(run, self.field)

    def draw_row(self, figure: Figure, row: Sequence[Axes], runs: Sequence[Run]) -> None:
        """Draw this panel of every run, with one colour bar, or one each where the scales differ."""
        norms = self._norms(runs)
        shared = len(set(map(id, norms))) == 1
        for number, (axes, run, norm) in enumerate(zip(row, runs, norms)):
            values = self.data(run)
            if not np.isfinite(values).any():
                _nothing(axes)
                continue
            columns = values.shape[1]
            extent = (self.first - 0.5, self.first + columns - 0.5, -0.5, len(values) - 0.5)
            image = axes.imshow(np.ma.masked_invalid(values), norm=norm, cmap=COLOURS, aspect='auto',
                                interpolation='nearest', origin='lower', extent=extent)
            axes.yaxis.set_major_locator(integers(12))
            if self.field == 'counts' and columns <= MAX_ANNOTATED_PERIODS and len(values) <= MAX_ANNOTATED_BLOCKS:
                _annotate(axes, image, values)
            if not shared or number == len(runs) - 1:
                ticks = integers(6) if self.field == 'counts' else MaxNLocator(5, symmetric=True)
                bar = figure.colorbar(image, ax=list(row) if shared else axes, ticks=ticks, label=self.colours,
                                      format=None if self.field == 'counts' else _powers())
                bar.minorticks_off()

    def _norms(self, runs: Sequence[Run]) -> list[TwoSlopeNorm]:
        if self.field == 'counts':
            if len({run.counts[:, 0].sum() for run in runs}) == 1:
                return [counts_norm([run.counts for run in runs])] * len(runs)
            return [counts_norm([run.counts]) for run in runs]
        # Losses differ in scale from task to task.
        return [_idleness_norm(run.idleness) for run in runs]


class _Curve:
    """A quantity over the periods, each run on a scale of its own.

    Args:
        field: Of :class:`Run`, (P,).
        label: Of the y axis.
        reference: Value of a grey line, from a run.
        smooth: Whether to add a running mean.
    """
    is_map = False

    def __init__(self, field: str, label: str, reference, smooth: bool = False) -> None:
        self.field = field
        self.label = label
        self.reference = reference
        self.smooth = smooth

    def data(self, run: Run) -> np.ndarray:
        """(P,)."""
        return getattr(run, self.field)

    def draw_row(self, figure: Figure, row: Sequence[Axes], runs: Sequence[Run]) -> None:
        """Draw this panel of every run."""
        for axes, run in zip(row, runs):
            values = self.data(run)
            if not np.isfinite(values).any():
                _nothing(axes)
                continue
            periods = np.arange(1, len(values) + 1)
            text, height = self.reference(run)
            axes.axhline(height, color='0.6', linewidth=0.8, label=text)
            smooth = self.smooth and len(values) >= 2 * SMOOTHING
            style = dict(color=BLUE, alpha=0.35, marker=None) if smooth else dict(color=BLUE, marker='.', markersize=4)
            axes.plot(periods, values, linewidth=1, **style)
            if smooth:
                axes.plot(periods, running_mean(values, SMOOTHING), color=BLUE, linewidth=1.6,
                          label=f'mean of {SMOOTHING} periods')
            if text or smooth:
                axes.legend(fontsize=7, frameon=False, loc='best', ncols=2, borderaxespad=0.2)


PANELS = (
    _Map('counts', 0, 'Number of prompts'),
    _Map('idleness', 1, 'Mean idleness (grey: no prompt)'),
    _Curve('rewards', 'Reward', lambda run: (None, 0), smooth=True),
    _Curve('entropy', 'Entropy (nats)', lambda run: ('uniform', np.log(len(run.counts)))),
)


def running_mean(values: np.ndarray, width: int) -> np.ndarray:
    """(P,) mean of the last ``width`` values that are not NaN, NaN where there is none."""
    windows = [values[max(0, end - width):end] for end in range(1, len(values) + 1)]
    return np.array([np.nanmean(window) if np.isfinite(window).any() else np.nan for window in windows])


def _width(runs: Sequence[Run]) -> float:
    """Inches: enough for the periods, within what a page or a screen shows."""
    most = 10 if len(runs) == 1 else 18 / len(runs)
    return 1.8 + sum(float(np.clip(1 + 0.4 * run.counts.shape[1], 4.5, max(most, 4.5))) for run in runs)


def integers(most: int) -> MaxNLocator:
    """Ticks at round whole numbers only, at most so many."""
    return MaxNLocator(nbins=most, integer=True, min_n_ticks=1, steps=[1, 2, 5, 10])


def _powers() -> ScalarFormatter:
    """Small numbers with their power of ten written once, above."""
    formatter = ScalarFormatter(useMathText=True)
    formatter.set_powerlimits((-2, 3))
    return formatter


def counts_norm(counts: Sequence[np.ndarray]) -> TwoSlopeNorm:
    """For numbers of prompts, (L, columns) of each run: centred on the initial mean, symmetric but for its end at 0."""
    centre = counts[0][:, 0].mean()
    reach = max(max(np.abs(each - centre).max() for each in counts), 1)
    below = min(reach, centre) or 1
    return TwoSlopeNorm(centre, centre - below, centre + reach)


def _idleness_norm(idleness: np.ndarray) -> TwoSlopeNorm:
    """Colours centred on 0. One outlier (the first period, often) shall not pale all the rest."""
    known = np.abs(idleness[np.isfinite(idleness)])
    reach = float(np.quantile(known, 0.98)) if len(known) else 0.
    return TwoSlopeNorm(0, -(reach or 1), reach or 1)


def _nothing(axes: Axes) -> None:
    axes.text(0.5, 0.5, 'not recorded', transform=axes.transAxes, ha='center', va='center', color='0.5')
    axes.set_yticks([])


def _annotate(axes: Axes, image, counts: np.ndarray) -> None:
    """Write each count into its cell, light on dark colours."""
    for (block, period), count in np.ndenumerate(counts):
        red, green, blue, _ = image.cmap(image.norm(count))
        luminance = 0.299 * red + 0.587 * green + 0.114 * blue
        axes.text(period, block, str(count), ha='center', va='center', fontsize=7,
                  color='black' if luminance > 0.5 else 'white')


def save(figure: Figure, path: Path) -> None:
    """Write the whole file or none."""
    content = io.BytesIO()
    figure.savefig(content, format='png')
    write_atomically(content.getvalue(), path)
