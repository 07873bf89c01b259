import json

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from mmprovpt.visualization import LogError, plot_relocation, read_log, run_of
from mmprovpt.visualization.relocation import PANELS, running_mean


def walk(num_blocks, per_block, periods, full=True):
    """The initial distribution and the rows of a run in which one prompt moves per period."""
    rng = np.random.default_rng(0)
    counts, rows = [per_block] * num_blocks, []
    for period in range(1, periods + 1):
        source = int(rng.choice([block for block, count in enumerate(counts) if count]))
        target = int(rng.integers(num_blocks))
        means = [float(rng.normal()) if count else None for count in counts]
        counts = list(counts)
        counts[source] -= 1
        counts[target] += 1
        rows.append({'period': period, 'iter': period, 'loss': 1., 'prompt': 0, 'from': source, 'to': target,
                     'idleness': .1, 'reward': None if period == periods else .1, 'distribution': counts})
        if full:
            rows[-1].update(block_idleness=means, entropy=1.)
    return [per_block] * num_blocks, rows


@pytest.fixture
def log(tmp_path):
    """Writes a log, and returns its path."""

    def write(name, rows, end='\n'):
        path = tmp_path / name
        path.write_text('\n'.join(json.dumps(row) for row in rows) + end)
        return path

    return write


@pytest.mark.parametrize('num_blocks,per_block,periods,full', [
    (1, 1, 0, True), (4, 3, 1, True), (12, 10, 100, False), (24, 50, 300, True)])
def test_a_picture_of_any_size(tmp_path, num_blocks, per_block, periods, full):
    run = run_of(*walk(num_blocks, per_block, periods, full))
    assert run.counts.shape == (num_blocks, periods + 1)
    path = plot_relocation([run], tmp_path / 'picture.png')
    with Image.open(path) as image:
        assert image.format == 'PNG'
        assert 800 < image.width <= 2000 and 250 < image.height <= 2400
    assert [p.name for p in tmp_path.iterdir()] == ['picture.png']


def test_unlike_runs_side_by_side(tmp_path):
    runs = [run_of(*walk(4, 3, 30)), run_of(*walk(4, 30, 5, full=False)), run_of(*walk(4, 3, 1))]
    with Image.open(plot_relocation(runs, tmp_path / 'three.png')) as three:
        assert three.width > 2000
    with pytest.raises(ValueError, match=r'got \[4, 5\]'):
        plot_relocation([runs[0], run_of(*walk(5, 3, 1))], tmp_path / 'other.png')
    with pytest.raises(ValueError, match=r'got \[\]'):
        plot_relocation([], tmp_path / 'other.png')
    assert [p.name for p in tmp_path.iterdir()] == ['three.png']


def test_nothing_known_is_not_drawn():
    rows = [dict(period=period, reward=None, distribution=[0, 0], block_idleness=None) for period in (1, 2)]
    run = run_of([0, 0], rows)
    assert np.isnan(run.idleness).all() and np.isnan(run.rewards).all() and run.counts.sum() == 0


@pytest.mark.parametrize('counts, expected', [
    ([([5, 5], [3, 7])], [(3, 5, 7)]),
    ([([5, 5], [3, 7]), ([5, 5], [0, 40])], [(0, 5, 40)] * 2),
    ([([5, 5], [3, 7]), ([1, 1], [1, 1])], [(3, 5, 7), (0, 1, 2)]),
])
def test_colours_are_centred_and_never_below_zero(counts, expected):
    """Runs that start from the same number of prompts share them."""
    runs = [run_of(initial, [dict(period=1, reward=None, distribution=after)]) for initial, after in counts]
    figure = Figure()
    row = figure.subplots(1, len(runs), squeeze=False)[0]
    PANELS[0].draw_row(figure, row, runs)
    norms = [axes.images[0].norm for axes in row]
    assert [(norm.vmin, norm.vcenter, norm.vmax) for norm in norms] == expected


def test_running_mean_skips_what_is_not_known():
    nan = np.nan
    np.testing.assert_allclose(running_mean(np.array([nan, 1, 3, nan, 8]), 2), [nan, 1, 2, 3, 8])


def test_a_log_reads_as_its_history(log):
    initial, rows = walk(4, 3, 6)
    run, expected = read_log(log('log', rows), 'name'), run_of(initial, rows, 'name')
    for one, other in zip(run[1:5], expected[1:5]):
        np.testing.assert_array_equal(one, other)
    assert run.name == 'name' and run.warning is None


def test_rewards_of_old_and_new_logs(log):
    """Of the relocation that closes a period: in its own row, or in that of the next."""
    common = {'from': 0, 'to': 1, 'distribution': [1, 3]}
    old = [dict(common, period=period, reward=reward) for period, reward in ((1, 0.5), (2, None), (3, None))]
    new = [dict(common, period=period, previous_reward=reward) for period, reward in ((1, None), (2, 0.5), (3, None))]
    for rows in (old, new):
        np.testing.assert_array_equal(read_log(log('log', rows)).rewards, [0.5, np.nan, np.nan])


def test_several_prompts_of_a_period_are_one_column(log):
    row = {'period': 1, 'reward': 1., 'distribution': [0, 3, 3]}
    rows = [dict(row, **{'from': 0, 'to': target}) for target in (1, 2)]
    rows.append({'period': 2, 'from': None, 'to': None, 'reward': None, 'distribution': [0, 3, 3]})
    run = read_log(log('log', rows))
    assert run.counts.T.tolist() == [[2, 2, 2], [0, 3, 3], [0, 3, 3]]
    assert run.rewards[0] == 1 and np.isnan(run.rewards[1])


def test_a_cut_off_log_is_used_with_a_warning(log):
    rows = walk(4, 3, 6)[1]
    run = read_log(log('log', rows, end='\n{"period": 7, "it'))
    assert run.counts.shape == (4, 7) and 'line 7, the last, is cut off' in run.warning


@pytest.mark.parametrize('text,message', [
    ('', 'is empty: no period has closed'),
    ('{"loss": 1}\n', 'line 1 has no period, from, to, distribution, previous_reward'),
    ('[1]\n', 'line 1 has no period'),
    ('hello\n', 'line 1 is no JSON'),
    ('hello\n{}\n', 'line 1 is no JSON'),
    ('{"period": 1, "from": 0, "to": 0, "reward": 0, "distribution": [1]}\n'
     '{"period": 1, "from": 0, "to": 0, "reward": 0, "distribution": [1, 2]}\n', 'line 2 is about 2 blocks'),
])
def test_other_files_raise(tmp_path, text, message):
    (tmp_path / 'log').write_text(text)
    with pytest.raises(LogError, match=message):
        read_log(tmp_path / 'log')


def test_no_file_and_no_text_raise(tmp_path):
    with pytest.raises(LogError, match='no such file: .*log'):
        read_log(tmp_path / 'log')
    (tmp_path / 'log').write_bytes(b'\x89PNG\xff')
    with pytest.raises(LogError, match='it is not text'):
        read_log(tmp_path / 'log')
