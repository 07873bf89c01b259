"""Loss and metric of a run of MMEngine beside its relocations, as one figure over the iterations."""
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from mmprovpt.relocation.history import read_rows

from .relocation import BLUE, COLOURS, VERMILION, counts_norm, integers, save
from .runs import LogError, Run, read_log

OTHERS = {'data_time', 'time', 'step', 'memory', 'epoch', 'iter'}  # of a row, what measures no quality


class Training(NamedTuple):
    """What a run has logged.

    Attributes:
        losses: (T, 2) float, iteration and training loss.
        metrics: By name (V, 2) float, iteration and value; may be empty.
        relocations: Its relocations, or None without any.
        closed: (P,) int, the iterations at which its periods closed.
        moved: Those after which a prompt changed its block.
    """
    losses: np.ndarray
    metrics: dict[str, np.ndarray]
    relocations: Run | None
    closed: list[int]
    moved: list[int]


def read_training(folder: str | Path) -> Training:
    """A run from ``vis_data/scalars.json`` and, if it is there, ``relocations.jsonl``.

    Args:
        folder: ``<work_dir>/<timestamp>``, or the work directory, of which the last run is meant.

    Raises:
        LogError: There is no such run, it has logged no loss, or a file of it is no log.
    """
    found = sorted(Path(folder).glob('vis_data/scalars.json')) or sorted(Path(folder).glob('*/vis_data/scalars.json'))
    if not found:
        raise LogError(f'no run in {folder} (looked for: {Path(folder).absolute()}/[*/]vis_data/scalars.json): give '
                       'the work directory of a run, or the folder in it that is named by a time')
    run = found[-1].parents[1]
    losses, metrics = _scalars(found[-1], _epoch_length(run))
    if not losses:
        raise LogError(f'{found[-1]} holds no loss: the run had logged nothing yet')
    log = run / 'relocations.jsonl'
    try:
        rows = read_rows(log) if log.is_file() else []
    except ValueError as error:
        raise LogError(f'{log} is not a relocation log: {error}') from error
    return Training(np.array(losses), {name: np.array(values) for name, values in metrics.items()},
                    read_log(log, '') if rows else None, sorted({row['iter'] for row in rows}),
                    sorted({row['iter'] for row in rows if row['from'] != row['to']}))


def _epoch_length(run: Path) -> int | None:
    """Iterations of an epoch, of which the log speaks alone; None in a loop of iterations."""
    for log in sorted(run.glob('*.log')):
        found = re.search(r'Epoch\(train\) +\[\d+\]\[ *\d+/(\d+)\]', log.read_text(encoding='utf-8', errors='replace'))
        if found:
            return int(found.group(1))
    return None


def _scalars(path: Path, epoch: int | None) -> tuple[list, dict[str, list]]:
    """Pairs of iteration and loss, and of iteration and value of each metric."""
    losses: list = []
    metrics: dict[str, list] = {}
    for number, line in enumerate(filter(None, path.read_text(encoding='utf-8').split('\n')), 1):
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise LogError(f'{path}: line {number} is no JSON ({error})') from error
        if 'loss' in row:
            losses.append((row['step'], row['loss']))
        elif not any(name.startswith('train/') for name in row):
            step = row['step'] * (epoch or 1)  # validation counts epochs where training does
            for name in set(row) - OTHERS:
                if isinstance(row[name], (int, float)):
                    metrics.setdefault(name, []).append((step, row[name]))
    return losses, dict(sorted(metrics.items()))


def plot_training(training: Training, path: str | Path, metrics: Sequence[str] | None = None, title: str = '') -> Path:
    """Draw loss, metrics and the number of prompts in each block, one below the other, as a PNG.

    Grey lines are the iterations after which a prompt changed its block.

    Args:
        training: See ``read_training``.
        path: File to write; its folder must exist.
        metrics: Names of those to draw; by default mIoU, or the first.
        title: Of the figure.

    Returns:
        ``path``.

    Raises:
        LogError: A metric was not logged.
    """
    chosen = list(training.metrics)[:1] if metrics is None else list(metrics)
    if metrics is None and 'mIoU' in training.metrics:
        chosen = ['mIoU']
    for name in chosen:
        if name not in training.metrics:
            raise LogError(f'the run has logged no metric {name!r}, but {", ".join(training.metrics) or "none"}')
    maps = [training.relocations] if training.relocations else []
    heights = [2.0] + [1.7] * len(chosen) + [float(np.clip(0.8 + 0.2 * len(run.counts), 1.6, 5)) for run in maps]
    figure = Figure(figsize=(8, sum(heights) + 0.4), dpi=120, layout='constrained')
    FigureCanvasAgg(figure)
    axes = figure.subplots(len(heights), 1, sharex=True, squeeze=False, height_ratios=heights)[:, 0]
    _curve(axes[0], training.losses, 'Training loss', BLUE, training.moved)
    for place, name in zip(axes[1:], chosen):
        _curve(place, training.metrics[name], name, VERMILION, training.moved, marker='o')
    for run in maps:
        _map(figure, axes[-1], run, training.closed, training.losses[-1, 0])
    axes[0].set_title(title, fontsize=11)
    axes[-1].set_xlabel('Iteration')
    figure.align_ylabels(axes)
    save(figure, Path(path))
    return Path(path)


def _curve(axes: Axes, points: np.ndarray, label: str, colour: str, moved: Sequence[int], marker: str = '') -> None:
    for number, iteration in enumerate(moved):
        axes.axvline(iteration, color='0.75', linewidth=0.8, label=None if number else 'a prompt changes its block')
    axes.plot(*points.T, color=colour, linewidth=1.5, marker=marker, markersize=5, clip_on=not marker)
    axes.set_ylabel(label)
    if moved and not marker:
        axes.legend(fontsize=9, loc='upper right', framealpha=0.9)


def _map(figure: Figure, axes: Axes, run: Run, closed: Sequence[int], end: float) -> None:
    """Prompts per block between relocations."""
    last = max(end, closed[-1] + 1e-3)  # what the last period leaves is there until the end
    edges = [0, *closed, last]
    mesh = axes.pcolormesh(edges, np.arange(len(run.counts) + 1) - 0.5, run.counts, cmap=COLOURS,
                           norm=counts_norm([run.counts]))
    axes.yaxis.set_major_locator(integers(12))
    axes.set_ylabel('Block')
    figure.colorbar(mesh, ax=axes, ticks=integers(5), label='Prompts', pad=0.01).minorticks_off()
