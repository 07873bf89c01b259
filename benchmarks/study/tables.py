"""Tables of the study's results: means, and paired differences with their 95 % intervals."""
import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import mean, stdev

# Of Student's t, two-sided 95 %, by degrees of freedom.
T95 = (math.nan, 12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145,
       2.131, 2.120, 2.110, 2.101, 2.093, 2.086, 2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045)


def read_rows(path: Path) -> list[dict]:
    """Finished trainings; AP, which COCO's tools give as a share, in points, as accuracy and mIoU are."""
    rows = [json.loads(line) for line in path.read_text(encoding='utf-8').splitlines()] if path.exists() else []
    return [{key: 100 * value if key.endswith('_ap') and value is not None else value for key, value in row.items()}
            for row in rows]


def interval(values: Sequence[float]) -> tuple[float, float]:
    """Mean and half of its 95 % interval (Student's t; NaN for less than two values)."""
    count = len(values)
    if count < 2:
        return mean(values), math.nan
    quantile = T95[count - 1] if count <= len(T95) else 1.96
    return mean(values), quantile * stdev(values) / math.sqrt(count)


def paired(rows: Sequence[dict], arm: str, baseline: str, key: str) -> dict[str, list[float]]:
    """Differences of an arm and a baseline seed by seed, by task."""
    values = {(row['arm'], row['task'], row['seed']): row[key] for row in rows if row.get(key) is not None}
    found: dict[str, list[float]] = {}
    for (name, task, seed), value in values.items():
        if name == arm and (baseline, task, seed) in values:
            found.setdefault(task, []).append(value - values[baseline, task, seed])
    return found


def table(rows: Sequence[dict], baseline: str | None = None,
          more: Mapping[str, Callable[[dict], float]] | None = None) -> str:
    """Markdown, a line for each task and arm, in the order of the file; differences are to the first arm.

    Args:
        rows: Of an experiment.
        baseline: Another arm than the first.
        more: Title of a column → what it is the mean of.
    """
    more = more or {}
    baseline = baseline or (rows[0]['arm'] if rows else '')
    measures = [key.removeprefix('average_') for key in (rows[0] if rows else ()) if key.startswith('average_')]
    head = ['task', 'arm', 'seeds', *(
        title for when in ('average', 'last') for title in (
            f'{measures[0]} ({when})', f'less "{baseline}"', *(f'{name} ({when})' for name in measures[1:]))),
            'training loss', 'moves', *more] if rows else []
    lines = ['| ' + ' | '.join(head) + ' |', '|---' * len(head) + '|']
    for task in dict.fromkeys(row['task'] for row in rows):
        for arm in dict.fromkeys(row['arm'] for row in rows):
            mine = [row for row in rows if (row['task'], row['arm']) == (task, arm)]
            if not mine:
                continue
            cells = [task, arm, str(len(mine))]
            for when in ('average', 'last'):
                key = f'{when}_{measures[0]}'
                cells += [_mean(mine, key, 1), _signed(paired(rows, arm, baseline, key).get(task, [])),
                          *(_mean(mine, f'{when}_{name}', 2) for name in measures[1:])]
            cells += [_mean(mine, 'training_loss', 2), _mean(mine, 'moves', 0)]
            cells += [f'{mean(map(value, mine)):.1f}' for value in more.values()]
            lines.append('| ' + ' | '.join(cells) + ' |')
    return '\n'.join(lines)


def winners(rows: Sequence[dict], measure: str) -> dict[str, str]:
    """Arm of each method's best setting, by the mean over tasks of a measure; of equals the first, the lower rate.

    Args:
        rows: Of a tuning; arms are '<method> at <setting>'. A setting that diverged on a task does not win.
        measure: A key of rows, higher is better.
    """
    tasks = {row['task'] for row in rows}
    best: dict[str, tuple[float, str]] = {}
    for arm in dict.fromkeys(row['arm'] for row in rows):
        values = [row[measure] for row in rows if row['arm'] == arm and row.get(measure) is not None]
        method = arm.split(' at ')[0]
        if len(values) == len(tasks) and (method not in best or mean(values) > best[method][0]):
            best[method] = mean(values), arm
    return {method: arm for method, (_, arm) in best.items()}


def main_table(rows: Sequence[dict], chosen: dict[str, str], measure: str, baseline: str) -> str:
    """Markdown, a line for each method: means per task, less the baseline, and the same over tasks.

    Args:
        rows: Of the finals.
        chosen: Arm of each method, see ``winners``.
        measure: A key of rows.
        baseline: A method; differences are paired by seed. Over tasks, ± is that of the tasks' mean differences.
    """
    tasks = list(dict.fromkeys(row['task'] for row in rows))
    lines = ['| ' + ' | '.join(['method', 'setting', *tasks, 'mean', f'less {baseline}']) + ' |',
             '|---' * (len(tasks) + 4) + '|']
    for method, arm in chosen.items():
        differences = paired(rows, arm, chosen[baseline], measure)
        values = [[row[measure] for row in rows if (row['arm'], row['task']) == (arm, task)] for task in tasks]
        if not any(values):
            continue
        cells = [f'{mean(found):.1f} ({_signed(differences.get(task, []))})' if found else '–'
                 for task, found in zip(tasks, values)]
        means = [mean(found) for found in values if found]
        lines.append('| ' + ' | '.join([
            method, arm.split(' at ')[-1], *cells, f'{mean(means):.1f}' if len(means) == len(tasks) else '–',
            _signed([mean(found) for found in differences.values()])]) + ' |')
    return '\n'.join(lines)


def _mean(rows: Sequence[dict], key: str, digits: int) -> str:
    values = [row[key] for row in rows if row[key] is not None]
    return f'{mean(values):.{digits}f}' if values else '–'


def _signed(values: Sequence[float]) -> str:
    if not values:
        return '–'
    middle, half = interval(values)
    return f'{middle:+.1f}' + ('' if math.isnan(half) else f' ± {half:.1f}')
