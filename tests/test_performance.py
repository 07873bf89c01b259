"""benchmarks/performance: that every row becomes a line, what fails is said, and the arithmetic of its tables."""
import json
from pathlib import Path

import pytest
from benchmark_modules import modules_of

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope='module')
def harness():
    """The modules, which stand beside each other, by their names."""
    with modules_of('performance', 'performance', 'tables', 'scale') as modules:
        yield modules


def test_end_to_end(harness, tmp_path, monkeypatch):
    """All methods on a tiny ViT; a row that cannot be built is a line, and the next one is measured."""
    run = harness['performance']
    plan = [run.Row('ViT-tiny', 'step', 'float32', 1, (*run.ALL, 'no such'), 32),
            run.Row('Swin-none', 'step', 'float32', 1, ('VPT 10', )),
            run.Row('ViT-tiny', 'inference', 'bf16', 1, ('VPT 10', ), 32)]
    monkeypatch.setitem(run.PLANS, 'trial', lambda: plan)
    run.main(['--plan', 'trial', '--library', 'timm', '--rounds', '1', '--at-least', '0', '--out', str(tmp_path)])
    step, none, inference = json.loads((tmp_path / 'performance.json').read_text())['rows']
    assert step['wall'].keys() == step['cpu'].keys() == {'plain', *run.ALL}
    assert all(seconds > 0 for times in step['wall'].values() for seconds in times)
    assert step['notes'] == {'no such': "KeyError: 'no such'"} and step['closing'].keys() == {'PRO-VPT 10'}
    assert step['checkpoint']['linear'] < step['checkpoint']['VPT 10'] < step['checkpoint']['full']
    assert none['rounds'] == 0 and 'KeyError' in none['notes']['all']
    assert inference['wall'].keys() == {'plain', 'VPT 10'}
    text = (tmp_path / 'performance.md').read_text()
    assert '| ViT-tiny | step, 1 × 32×32 | float32 | plain, ' in text and '- Swin-none, step, float32, batch 1' in text


def test_nothing_is_begun_without_time(harness, tmp_path):
    harness['performance'].main(['--plan', 'trial', '--seconds', '0', '--out', str(tmp_path)])
    rows = json.loads((tmp_path / 'performance.json').read_text())['rows']
    assert rows and all(row['notes'] == {'all': 'no time was left'} for row in rows)


def test_targets_by_hand(harness):
    rows = [dict(model='ViT-B', what='step', batch=8, wall={'plain': [1., 2., 1.], 'VPT 10': [2., 4.4, 2.05]},
                 cpu={'plain': [1.], 'VPT 10': [3.]}),
            dict(model='ViT-B', what='memory', batch=8, memory={'VPT 10': 60., 'full': 100.})]
    lines = harness['tables'].targets(rows).splitlines()
    assert lines[4:] == [
        '| ViT-B, step, batch 8: VPT 10 / plain | 2.1 | 2.050 (2.000-2.200) | 3.000 (3.000-3.000) | yes |',
        '| ViT-B, memory, batch 8: VPT 10 / full | 0.55 | 0.600 (0.600-0.600) |  | no |']


def test_curves(harness, tmp_path, monkeypatch):
    """Memory grows by as much for each block, and one file holds the figure."""
    monkeypatch.setattr(harness['scale'], 'SIZES', dict(blocks=(1, 2, 3), periods=(2, 6)))
    harness['scale'].main(['--out', str(tmp_path), '--rounds', '2', '--only', 'blocks', 'periods'])
    found = json.loads((tmp_path / 'scale.json').read_text())
    one, two, three = (found['blocks'][size]['mib'] for size in '123')
    assert three - two == pytest.approx(two - one, rel=0.01) and two > one
    assert found['periods'].keys() == {'2', '6'}
    assert (tmp_path / 'scale.png').read_bytes().startswith(b'\x89PNG')
