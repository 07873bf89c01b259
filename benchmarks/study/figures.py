#!/usr/bin/env python
"""Draw the study's figures from its results: paired differences to a baseline with their 95 % intervals.

Of experiments that are complete.

    python benchmarks/study/figures.py --out docs/evidence/figures
"""
import argparse
from collections.abc import Sequence
from pathlib import Path
from statistics import mean

import matplotlib.pyplot as plt
from experiments import EXPERIMENTS, MEASURES, NEEDS, SAME
from matplotlib.axes import Axes
from tables import interval, paired, read_rows, winners

# So far from the others that these would be one line.
FAR = dict(main=('linear',), camvid=('frozen', 'full'),
           gain=('idlest, in place, shrunk, every 4 iterations', 'weight decay 0.01'))
BLUE, ORANGE, GREEN, GREY = '#0072B2', '#D55E00', '#009E73', '#999999'  # told apart by colour-blind people, too


def lines_of(results: Path, experiment: str) -> tuple[list[dict], dict[str, dict[str, str]], str]:
    """Rows of an experiment; for the average and the last iterate, the arm of each line; the baseline's line."""
    rows = read_rows(results / f'{experiment}.jsonl')
    if experiment not in NEEDS:
        arms = dict.fromkeys(run.arm for run in EXPERIMENTS[experiment](results))
        return rows, {when: {arm: arm for arm in arms} for when in ('average', 'last')}, next(iter(arms), '')
    measures = MEASURES.get(experiment, ('average_accuracy', 'last_accuracy'))
    tuning = read_rows(results / f'{NEEDS[experiment]}.jsonl')
    run = {row['arm'] for row in rows}
    arms = {measure.partition('_')[0]: {method: arm for method, arm in winners(tuning, measure).items()
                                        if arm in run} for measure in measures}
    if experiment == 'main':
        rows += read_rows(results / 'same_setting.jsonl')
    if any(row['arm'] == f'VPT-Deep at {SAME}' for row in rows):  # beside what has this setting
        for when in arms:
            arms[when][f'VPT-Deep at {SAME}'] = f'VPT-Deep at {SAME}'
    return rows, arms, 'VPT-Deep'


def draw(axes: Axes, rows: Sequence[dict], arms: dict[str, dict[str, str]], baseline: str, names: Sequence[str],
         measure: str, tasks: Sequence[str]) -> None:
    """One panel: a line for each arm, its mean difference over ``tasks`` and 95 % interval, average and last iterate.

    For one task the interval is that of seeds, for several that of the tasks' means.
    """
    for when, label, colour, shift in (('average', 'average of weights', BLUE, -0.14),
                                       ('last', 'last iterate', ORANGE, 0.14)):
        for place, name in enumerate(names):
            if name not in arms[when] or baseline not in arms[when]:
                continue
            found = paired(rows, arms[when][name], arms[when][baseline], f'{when}_{measure}')
            values = found.get(tasks[0], []) if len(tasks) == 1 else [mean(values) for values in found.values()]
            if values:
                middle, half = interval(values)
                axes.errorbar(middle, place + shift, xerr=half, fmt='o' if when == 'average' else 's', color=colour,
                              markersize=4, capsize=2, label=label)
    axes.axvline(0, color=GREY, linewidth=1)
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.grid(axis='x', alpha=0.3)


def figure(results: Path, experiment: str, measure: str, unit: str, together: bool, path: Path) -> None:
    """Write a panel for each task, or one over all tasks."""
    rows, arms, baseline = lines_of(results, experiment)
    if not rows or len(rows) < len(EXPERIMENTS[experiment](results)):
        return
    tasks = list(dict.fromkeys(row['task'] for row in rows))
    names = [name for name in arms['average'] if name not in (baseline, *FAR.get(experiment, ()))]
    panels = [tasks] if together else [[task] for task in tasks]
    figure_, axes = plt.subplots(1, len(panels), sharey=True, squeeze=False, layout='constrained',
                                 figsize=(3.2 + 2.8 * len(panels), 0.9 + 0.27 * len(names)))
    for place, group in zip(axes[0], panels):
        draw(place, rows, arms, baseline, names, measure, group)
        place.set_title(f'{len(tasks)} tasks' if len(group) > 1 else group[0], fontsize=10)
        place.set_xlabel(f'{unit} less {baseline!r}', fontsize=9)
    handles, labels = axes[0][0].get_legend_handles_labels()
    unique = dict(zip(labels, handles))
    figure_.legend(unique.values(), unique.keys(), fontsize=8, loc='outside upper right', ncols=2)
    figure_.savefig(path / f'study_{experiment}.svg', metadata=dict(Date=None))
    plt.close(figure_)


def longer(results: Path, path: Path) -> None:
    """Accuracy on one task against the length of training: means and ranges over seeds."""
    arms = {'VPT-Deep, weight decay 0.01': f'VPT-Deep at {SAME}', 'PRO-VPT, the same': f'PRO-VPT, cosine at {SAME}',
            're-birth in place, the same': f're-birth in place, cosine at {SAME}',
            'VPT-Deep, weight decay 0.0001': 'VPT-Deep at 0.3, 0.0001'}
    rows = {epochs: [row for name in names for row in read_rows(results / f'{name}.jsonl') if row['task'] == 'size']
            for epochs, names in ((10, ('main', 'same_setting')), (40, ('epochs_40',)), (100, ('epochs_100',)))}
    figure_, axes = plt.subplots(figsize=(6.4, 3.2), layout='constrained')
    for place, ((name, arm), colour, marker) in enumerate(zip(arms.items(), (BLUE, ORANGE, GREEN, GREY), 'osD^')):
        values = [[row['average_accuracy'] for row in rows[epochs] if row['arm'] == arm] for epochs in rows]
        means = [mean(found) for found in values]
        reach = [[middle - min(found) for middle, found in zip(means, values)],
                 [max(found) - middle for middle, found in zip(means, values)]]
        axes.errorbar([epochs * 1.03 ** (place - 1.5) for epochs in rows], means, yerr=reach, label=name, color=colour,
                      marker=marker, markersize=5, capsize=2)
    axes.set(xscale='log', xlabel='epochs', ylabel='accuracy, size, %')
    axes.set_xticks([*rows], [str(epochs) for epochs in rows])
    axes.minorticks_off()
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    figure_.savefig(path / 'study_longer.svg', metadata=dict(Date=None))
    plt.close(figure_)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--results', type=Path, default=Path(__file__).parent / 'results')
    parser.add_argument('--out', type=Path, required=True, help='folder')
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    plt.rcParams['svg.hashsalt'] = 'study'  # the same file again from the same results
    for experiment, measure, unit, together in (
            ('gain', 'accuracy', 'accuracy, points', False), ('gain_all', 'accuracy', 'accuracy, points', True),
            ('main', 'accuracy', 'accuracy, points', True), ('epochs_40', 'accuracy', 'accuracy, points', True),
            ('recovery', 'accuracy', 'accuracy, points', False), ('camvid', 'miou', 'mIoU, points', False),
            ('detection', 'box_ap', 'box AP', False)):
        figure(args.results, experiment, measure, unit, together, args.out)
    longer(args.results, args.out)


if __name__ == '__main__':
    main()
