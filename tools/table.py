#!/usr/bin/env python
"""The paper's table from sweeps: accuracy per task with its spread over seeds, averages, parameters.

    python tools/table.py work_dirs/sweep
    python tools/table.py 'PRO-VPT, gate=work_dirs/gate' work_dirs/vpt/cifar_vpt/summary.json --format latex

Reads every summary.json that tools/sweep.py left below the given folders. A row is a method, or what stands before
the '='. What was measured and what is the paper's is said in the column `source`.
"""
import argparse
import csv
import io
import json
from pathlib import Path
from statistics import mean, stdev
from typing import NamedTuple

from mmprovpt.cli.user_errors import user_errors
from mmprovpt.datasets.fgvc_tasks import FGVC_TASKS
from mmprovpt.datasets.miniature_tasks import TASKS as MINIATURE
from mmprovpt.datasets.vtab1k_tasks import GROUPS, TASKS
from mmprovpt.errors import ConfigError
from mmprovpt.files import refuse_overwriting

# Tasks in the paper's order and groups.
BENCHMARKS: dict[str, dict[str, list[str]]] = {
    'VTAB-1k': {group: [task.name for task in TASKS if task.group == group] for group in GROUPS},
    'FGVC': {'': list(FGVC_TASKS)},
    'miniature VTAB': {group: [name for name, task in MINIATURE.items() if task.group == group]
                       for group in ('Natural', 'Structured')},
}
METHODS = ('Full', 'Linear', 'LoRA', 'VPT-Shallow', 'VPT-Deep', 'PRO-VPT', 'VAPT', 'PRO-VAPT')  # their order
PAPER = Path(__file__).with_name('paper_results.json')
MISSING = '-'


class Layout(NamedTuple):
    """Which columns a table has.

    Attributes:
        benchmark: Whose rows of the paper belong beside, or '' for other tasks.
        groups: Tasks of each group; one group without a name has no mean of its own.
    """
    benchmark: str
    groups: dict[str, list[str]]

    @property
    def columns(self) -> list[str]:
        names = []
        for group, tasks in self.groups.items():
            names += tasks + [f'{group} mean'] * bool(group)
        return ['method', 'source', 'parameters (M)', *names, 'mean']


def layout_of(tasks: list[str]) -> Layout:
    """The benchmark that has all these tasks; else the tasks as they come."""
    for name, groups in BENCHMARKS.items():
        if set(tasks) <= {task for group in groups.values() for task in group}:
            return Layout(name, groups)
    return Layout('', {'': list(dict.fromkeys(tasks))})


def read_summaries(inputs: list[str]) -> dict[str, dict[str, dict]]:
    """Summaries by row and task.

    Args:
        inputs: Folders or summary.json files, each as PATH or LABEL=PATH.

    Raises:
        ConfigError: There are none, one is no summary, or two are of the same row and task.
    """
    rows: dict[str, dict[str, dict]] = {}
    origin = {}
    for given in inputs:
        label, path = given.split('=', 1) if '=' in given and not Path(given).exists() else (None, given)
        found = [Path(path)] if Path(path).is_file() else sorted(Path(path).rglob('summary.json'))
        if not found:
            raise ConfigError(f'no summary.json in {path} (looked for: {Path(path).absolute()}): run `mmprovpt sweep`')
        for file in found:
            try:
                summary = json.loads(file.read_text(encoding='utf-8'))
                key = label or summary['method'], summary['task']
                summary['test'], summary['seeds']  # noqa: B018
            except (ValueError, KeyError, TypeError) as error:
                raise ConfigError(f'{file} is no summary of `mmprovpt sweep` ({error!r})') from error
            if key in origin:
                raise ConfigError(f'{origin[key]} and {file} are both {key[0]} on {key[1]}: give one, or tell them '
                                  'apart as LABEL=PATH')
            origin[key] = file
            rows.setdefault(key[0], {})[key[1]] = summary
    return rows


def measured_row(label: str, tasks: dict[str, dict], layout: Layout) -> list[str]:
    """Cells of a row: mean ± standard deviation over seeds; averages only where no task and no seed is missing."""
    scores = {task: summary['test'] for task, summary in tasks.items() if summary['test']}
    complete = {task for task in scores if len(scores[task]) >= tasks[task]['seeds']}
    cells, means = [], []
    for group, names in layout.groups.items():
        cells += [spread(list(scores[name].values()), tasks[name]['seeds']) if name in scores else MISSING
                  for name in names]
        means.append(average([scores.get(name) for name in names]) if complete.issuperset(names) else None)
        if group:
            cells.append(show(means[-1]))
    counts = [tasks[task]['parameters'] / 1e6 for task in scores]
    total = sum(map(len, layout.groups.values()))
    parameters = f'{mean(counts):.3f}' + (f' ({len(counts)} of {total} tasks)' if len(counts) < total else '') \
        if counts else MISSING
    seeds = sorted({len(values) for values in scores.values()})
    source = 'measured, ' + (f'{"-".join(map(str, seeds))} seed{"s" * (seeds != [1])}' if seeds else 'no seed finished')
    return [label, source, parameters, *cells, show(average(means))]


def average(scores: list[dict[str, float] | None]) -> dict[str, float] | None:
    """Per seed, the mean of several scores; with different seeds, the mean of means, under the seed ''.

    None where one is missing. The paper's global average is that of its group averages: the 19 printed scores of
    PRO-VPT have a mean of 75.8, the three printed group averages one of 78.0, and 78.0 is printed (VPT-Deep:
    74.3, 76.4, 76.4).
    """
    if not scores or None in scores:
        return None
    if len({tuple(sorted(values)) for values in scores}) == 1:
        return {seed: mean(values[seed] for values in scores) for seed in scores[0]}
    return {'': mean(mean(values.values()) for values in scores)}


def show(scores: dict[str, float] | None) -> str:
    return MISSING if scores is None else spread(list(scores.values()))


def spread(values: list[float], wanted: int = 0) -> str:
    """mean ± standard deviation (n - 1), and how many of the wanted seeds, if some are missing."""
    text = f'{mean(values):.1f}' + (f' ± {stdev(values):.1f}' if len(values) > 1 else '')
    return text + (f' ({len(values)} of {wanted} seeds)' if len(values) < wanted else '')


def paper_rows(layout: Layout, methods: list[str]) -> list[list[str]]:
    """Rows as the paper prints them.

    Raises:
        ConfigError: It has no such method.
    """
    paper = json.loads(PAPER.read_text(encoding='utf-8'))['benchmarks'].get(layout.benchmark)
    if paper is None:
        return []
    unknown = sorted(set(methods) - set(paper['rows']))
    if unknown:
        raise ConfigError(f'the paper has no rows {unknown} for {layout.benchmark}; it has {list(paper["rows"])}')
    rows = []
    for method in methods:
        row = paper['rows'][method]
        cells = []
        for group, names in layout.groups.items():
            cells += [f'{row["scores"][name]:.1f}' for name in names] + [f'{row["averages"].get(group)}'] * bool(group)
        rows.append([method, f'paper, {paper["table"]}', f'{row["parameters"]:.2f}', *cells,
                     f'{row["averages"]["mean"]:.1f}'])
    return rows


def markdown(head: list[str], rows: list[list[str]], layout: Layout) -> str:
    lines = [head, ['---'] * len(head), *rows]
    return '\n'.join(f'| {" | ".join(cell.replace("|", "/") for cell in line)} |' for line in lines) + '\n'


def comma_separated(head: list[str], rows: list[list[str]], layout: Layout) -> str:
    out = io.StringIO()
    csv.writer(out, lineterminator='\n').writerows([head, *rows])
    return out.getvalue()


def latex(head: list[str], rows: list[list[str]], layout: Layout) -> str:
    """A tabular that needs the package booktabs."""
    def line(cells: list[str]) -> str:
        return ' & '.join(_escape(cell) for cell in cells) + r' \\'

    above = ['', '', '']
    for group, tasks in layout.groups.items():
        width = len(tasks) + bool(group)
        above += [rf'\multicolumn{{{width}}}{{c}}{{{_escape(group)}}}']
    return '\n'.join([
        r'\begin{tabular}{ll' + 'r' * (len(head) - 2) + '}', r'\toprule',
        *([' & '.join([*above, '']) + r' \\'] if any(layout.groups) else []),
        line(head), r'\midrule', *map(line, rows), r'\bottomrule', r'\end{tabular}']) + '\n'


def _escape(text: str) -> str:
    for char in '&%$#_{}':
        text = text.replace(char, '\\' + char)
    return text.replace('±', r'$\pm$')


FORMATS = dict(md=markdown, csv=comma_separated, latex=latex)


def table(inputs: list[str], style: str, paper: list[str] | None) -> str:
    """The table as text; a row of the paper follows those of its method.

    Args:
        inputs: See :func:`read_summaries`.
        style: One of FORMATS.
        paper: Rows of the paper; None: of the methods that were measured.
    """
    summaries = read_summaries(inputs)
    layout = layout_of([task for tasks in summaries.values() for task in tasks])
    methods = {label: next(iter(tasks.values()))['method'] for label, tasks in summaries.items()}
    if paper is None:
        known = json.loads(PAPER.read_text(encoding='utf-8'))['benchmarks'].get(layout.benchmark, dict(rows=()))['rows']
        paper = [method for method in METHODS if method in methods.values() and method in known]
    lines = [(methods[label], measured_row(label, tasks, layout)) for label, tasks in summaries.items()]
    lines += [(row[0], row) for row in paper_rows(layout, paper)]
    order = list(dict.fromkeys([*METHODS, *(method for method, _ in lines)]))
    rows = [row for _, row in sorted(lines, key=lambda line: order.index(line[0]))]
    return FORMATS[style](layout.columns, rows, layout)


def distributions(inputs: list[str], style: str) -> str:
    """Prompts of each block at the end, mean over seeds, of every row and task that has some.

    Args:
        inputs: See :func:`read_summaries`.
        style: One of FORMATS.
    """
    rows = []
    for label, tasks in read_summaries(inputs).items():
        for task, summary in tasks.items():
            runs = [counts for counts in summary['distribution'].values() if counts]
            if runs:
                rows.append([label, task, str(len(runs)), *(f'{mean(block):.3g}' for block in zip(*runs))])
    if not rows:
        raise ConfigError('no finished seed of these has prompts')
    width = max(map(len, rows))
    head = ['method', 'task', 'seeds', *(f'block {number}' for number in range(1, width - 2))]
    return FORMATS[style](head, [row + [MISSING] * (width - len(row)) for row in rows], Layout('', {}))


def parse_args():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('inputs', nargs='+', metavar='[LABEL=]PATH', help='work directories or summary.json files')
    parser.add_argument('--format', choices=FORMATS, default='md')
    parser.add_argument('--paper', nargs='*', metavar='METHOD',
                        help="rows of the paper's table, or none; default: of the methods that were measured")
    parser.add_argument('--distributions', action='store_true',
                        help='instead: prompts of each block at the end, mean over seeds')
    parser.add_argument('--out', type=Path, help='a file; default: print')
    return parser.parse_args()


@user_errors()
def main():
    args = parse_args()
    text = distributions(args.inputs, args.format) if args.distributions else \
        table(args.inputs, args.format, args.paper)
    if args.out:
        refuse_overwriting(args.out, *args.inputs)
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(text, encoding='utf-8')
    else:
        print(text, end='')


if __name__ == '__main__':
    main()
