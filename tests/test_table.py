"""tools/table.py: tables of summaries as tools/sweep.py writes them."""
import csv
import importlib.util
import io
import json
from pathlib import Path
from statistics import mean, stdev

import pytest

from mmprovpt.errors import ConfigError

ROOT = Path(__file__).parents[1]
spec = importlib.util.spec_from_file_location('tools_table', ROOT / 'tools/table.py')
table = importlib.util.module_from_spec(spec)
spec.loader.exec_module(table)

VTAB = [task for group in table.BENCHMARKS['VTAB-1k'].values() for task in group]


def write(folder, task, test, method='PRO-VPT', seeds=3, parameters=600_000, distribution=None):
    path = folder / f'{method}_{task}' / 'summary.json'
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(dict(task=task, method=method, seeds=seeds, parameters=parameters,
                                    test={str(seed): score for seed, score in enumerate(test)},
                                    distribution={str(seed): distribution and distribution[seed]
                                                  for seed in range(len(test))})))
    return path


def read(inputs, paper=None):
    """Rows as dicts, by way of CSV."""
    return list(csv.DictReader(io.StringIO(table.table([str(path) for path in inputs], 'csv', paper))))


def test_whole_vtab(tmp_path):
    scores = {task: [10. + i, 20. + i, 24. + 2 * i] for i, task in enumerate(VTAB)}
    for i, task in enumerate(VTAB):
        write(tmp_path, task, scores[task], parameters=500_000 + 10_000 * i)
    measured, paper = read([tmp_path])
    assert list(measured)[:3] == ['method', 'source', 'parameters (M)'] and len(measured) == 3 + 19 + 3 + 1
    assert list(measured)[3:12] == VTAB[:7] + ['Natural mean', 'patch_camelyon']
    assert measured['source'] == 'measured, 3 seeds' and paper['source'] == 'paper, Table 1'
    assert measured['parameters (M)'] == '0.590'
    assert measured['svhn'] == f'{mean(scores["svhn"]):.1f} ± {stdev(scores["svhn"]):.1f}'
    # Groups: tasks 0-6, 7-10, 11-18. Per seed the mean of tasks, then of groups; over seeds mean and deviation.
    middles = [3, 8.5, 14.5]
    natural = [13, 23, 30]
    assert measured['Natural mean'] == f'{mean(natural):.1f} ± {stdev(natural):.1f}'
    every = [10 + mean(middles), 20 + mean(middles), 24 + 2 * mean(middles)]
    assert measured['mean'] == f'{mean(every):.1f} ± {stdev(every):.1f}'
    assert paper['mean'] == '78.0' and paper['svhn'] == '88.2' and paper['Structured mean'] == '63.1'
    assert paper['parameters (M)'] == '0.61'


def test_papers_numbers_agree_with_its_averages():
    """Typing mistakes would show: printed averages are those of the printed scores, to rounding."""
    paper = json.loads(table.PAPER.read_text())['benchmarks']
    for name in paper:
        groups = table.BENCHMARKS[name]
        for method, row in paper[name]['rows'].items():
            means = [mean(row['scores'][task] for task in tasks) for tasks in groups.values()]
            for group, value in zip(groups, means):
                if group:
                    assert value == pytest.approx(row['averages'][group], abs=0.1), (method, group)
            # Of the groups, not of the 19 tasks.
            assert mean(means) == pytest.approx(row['averages']['mean'], abs=0.1), method
    vtab = paper['VTAB-1k']['rows']
    assert mean(vtab['PRO-VPT']['scores'].values()) == pytest.approx(75.8, abs=0.05)
    # PRO-VPT, Tables 1 and 2
    assert [vtab[method]['averages']['mean'] for method in ('VPT-Deep', 'PRO-VPT')] == [76.4, 78.0]
    assert [paper['FGVC']['rows'][method]['averages']['mean'] for method in ('VPT-Deep', 'PRO-VPT')] == [89.7, 91.7]


def test_what_is_missing_is_shown(tmp_path):
    for i, task in enumerate(VTAB[:7]):
        write(tmp_path, task, [50., 60., 70.] if i else [50., 60.])
    write(tmp_path, 'eurosat', [], parameters=None)
    row = read([tmp_path], [])[0]
    assert row['cifar'] == '55.0 ± 7.1 (2 of 3 seeds)' and row['caltech101'] == '60.0 ± 10.0'
    assert row['eurosat'] == row['dmlab'] == row['Natural mean'] == row['Specialized mean'] == row['mean'] == '-'
    assert row['source'] == 'measured, 2-3 seeds' and row['parameters (M)'] == '0.600 (7 of 19 tasks)'
    write(tmp_path, 'cifar', [50., 60., 70.])
    row = read([tmp_path], [])[0]
    assert row['Natural mean'] == '60.0 ± 10.0' and row['mean'] == '-'


def test_fgvc_has_no_groups(tmp_path):
    for i, task in enumerate(table.BENCHMARKS['FGVC']['']):
        write(tmp_path, task, [80. + i], method='VPT-Deep', seeds=1)
    measured, paper = read([tmp_path])
    assert (measured['mean'], measured['source'], paper['mean'], paper['method']) == (
        '82.0', 'measured, 1 seed', '89.7', 'VPT-Deep')


def test_other_tasks_and_labels(tmp_path):
    for task in ('mine', 'yours'):
        write(tmp_path / 'a', task, [90., 92.], seeds=2)
        write(tmp_path / 'b', task, [80.], seeds=1)
        write(tmp_path / 'c', task, [70.], seeds=1, method='VPT-Deep')
    rows = read([tmp_path / 'a', f'PRO-VPT, gate={tmp_path / "b"}', tmp_path / 'c'])
    assert [row['method'] for row in rows] == ['VPT-Deep', 'PRO-VPT', 'PRO-VPT, gate'], 'the paper has no such tasks'
    assert rows[1]['mean'] == '91.0 ± 1.4' and list(rows[1])[3:] == ['mine', 'yours', 'mean']


def test_miniature_and_distributions(tmp_path):
    write(tmp_path, 'count', [50., 60.], distribution=[[5, 5, 2], [5, 6, 1]], seeds=2)
    write(tmp_path, 'size', [50.], distribution=[[6, 6]], seeds=1)
    write(tmp_path, 'count', [40.], method='Linear', seeds=1)
    rows = read([tmp_path])
    assert [row['method'] for row in rows] == ['Linear', 'PRO-VPT']
    assert list(rows[0])[3:] == ['category', 'digits', 'Natural mean', 'count', 'location', 'orientation', 'size',
                                 'Structured mean', 'mean']
    assert (rows[1]['count'], rows[1]['location'], rows[1]['mean']) == ('55.0 ± 7.1', '-', '-')
    assert table.distributions([str(tmp_path)], 'csv').splitlines() == [
        'method,task,seeds,block 1,block 2,block 3', 'PRO-VPT,count,2,5,5.5,1.5', 'PRO-VPT,size,1,6,6,-']
    assert r'block 3 \\' in table.distributions([str(tmp_path)], 'latex')
    with pytest.raises(ConfigError, match='no finished seed of these has prompts'):
        table.distributions([str(tmp_path / 'Linear_count')], 'md')


def test_rows_of_the_paper_are_those_that_it_has(tmp_path):
    for method in ('LoRA', 'Full', 'VAPT'):
        write(tmp_path / 'vtab', 'cifar', [80.], method=method, seeds=1)
        write(tmp_path / 'fgvc', 'cub', [80.], method=method, seeds=1)
    assert [(row['method'], row['cifar']) for row in read([tmp_path / 'vtab'])] == [
        ('Full', '80.0'), ('Full', '73.2'), ('LoRA', '80.0'), ('LoRA', '83.0'), ('VAPT', '80.0')]
    assert [(row['method'], row['cub']) for row in read([tmp_path / 'fgvc'])] == [
        ('Full', '80.0'), ('Full', '88.0'), ('LoRA', '80.0'), ('VAPT', '80.0')]  # no LoRA there


def test_formats(tmp_path):
    write(tmp_path, 'cifar', [84., 85.], seeds=2)
    markdown = table.table([str(tmp_path)], 'md', None).splitlines()
    assert markdown[2].startswith('| PRO-VPT | measured, 2 seeds | 0.600 (1 of 19 tasks) | 84.5 ± 0.7 | - |')
    assert markdown[3].startswith('| PRO-VPT | paper, Table 1 | 0.61 | 84.5 | 94.1 |')
    assert len({line.count('|') for line in markdown}) == 1
    latex = table.table([str(tmp_path)], 'latex', None)
    assert r'PRO-VPT & measured, 2 seeds & 0.600 (1 of 19 tasks) & 84.5 $\pm$ 0.7 & - &' in latex
    assert r'oxford\_flowers102' in latex and r'\multicolumn{8}{c}{Natural}' in latex
    widths = {line.count('&') for line in latex.splitlines() if line.endswith(r'\\') and 'multicolumn' not in line}
    assert widths == {25}, 'of 26 columns'


def test_mistakes(tmp_path, monkeypatch):
    with pytest.raises(ConfigError, match='no summary.json in .*nothing'):
        read([tmp_path / 'nothing'])
    write(tmp_path / 'a', 'cifar', [1.]), write(tmp_path / 'b', 'cifar', [1.])
    with pytest.raises(ConfigError, match='are both PRO-VPT on cifar: give one, or tell them apart'):
        read([tmp_path])
    with pytest.raises(ConfigError, match=r"no rows \['Ours'\] for VTAB-1k; it has \['Full', 'Linear'"):
        read([tmp_path / 'a'], ['Ours'])
    path = write(tmp_path / 'c', 'cifar', [1.])
    path.write_text(path.read_text()[:20])
    with pytest.raises(ConfigError, match='is no summary of `mmprovpt sweep`'):
        read([path])
    monkeypatch.setattr('sys.argv', ['table', str(tmp_path / 'a'), '--out', str(tmp_path / 'new/table.md')])
    table.main()
    assert (tmp_path / 'new/table.md').read_text().startswith('| method |')
