"""benchmarks/table3: its rows on a tiny task, really trained."""
import importlib.util
import json
from pathlib import Path

import pytest
from tiny_task import write_task

ROOT = Path(__file__).parents[1]
spec = importlib.util.spec_from_file_location('benchmarks_table3', ROOT / 'benchmarks/table3/table3.py')
table3 = importlib.util.module_from_spec(spec)
spec.loader.exec_module(table3)


@pytest.fixture
def task(tmp_path):
    return write_task(tmp_path)


@pytest.mark.parametrize('row, counts, spare, pruner, allocator, per_period', [
    ('vpt', [4, 4], None, None, None, None),
    ('a_prune', [4, 4], None, 'ShrinkingPruner', 'RetireAllocator', 2),
    ('b_prune_hyper', [8, 8], None, 'ShrinkingPruner', 'RetireAllocator', 4),
    ('c_naive_rl', [4, 4], None, 'IdlenessPruner', 'JointPPOAllocator', None),
    ('d_random_thompson', [4, 4], None, 'RandomPruner', 'ThompsonAllocator', None),
    ('e_random_ppo', [4, 4], None, 'RandomPruner', 'PPOAllocator', None),
    ('f_idle_thompson', [4, 4], None, 'IdlenessPruner', 'ThompsonAllocator', None),
    ('g_provpt', [4, 4], None, 'IdlenessPruner', 'PPOAllocator', None),
    ('adding', [2, 2], 4, 'SparePruner', 'PPOAllocator', 2),
])
def test_rows(task, row, counts, spare, pruner, allocator, per_period):
    cfg = table3.row_config(table3.read_task(task), row, 5, [4, 4])
    assert cfg.randomness.seed == 5
    prompts = cfg.model.backbone.prompts
    assert prompts.num_tokens == counts and prompts.get('num_spare') == spare
    if pruner is None:
        assert cfg.custom_hooks == []
        return
    assert prompts.type == ('StaticPrompts' if spare is None else 'SparePrompts')
    ours = pruner in ('ShrinkingPruner', 'SparePruner') or allocator == 'JointPPOAllocator'
    assert cfg.custom_imports.imports == ['mmprovpt', *['benchmarks.table3.ablations'] * ours]
    hook, = cfg.custom_hooks
    assert (hook.pruner.type, hook.allocator.type) == (pruner, allocator)
    assert hook.get('relocate_per_period') == per_period, 'all of them in the first two of four periods'


def test_every_row_has_a_config():
    assert {path.stem for path in (ROOT / 'configs/table3').glob('*.py')} == set(table3.ROWS)


def run(monkeypatch, task, *args):
    monkeypatch.setattr('sys.argv', ['table3', str(task), '--work-dir', str(task.parent / 'out'), *args])
    monkeypatch.setenv('CUDA_VISIBLE_DEVICES', '')
    table3.main()


def test_table_of_real_runs(task, monkeypatch, capsys):
    run(monkeypatch, task, '--rows', 'b_prune_hyper', 'adding')
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith('|')]
    assert lines[0] == '| row | seeds | prompts, first → last | moves | accuracy/top1 | prompts per block at the end |'
    cells = [[cell.strip() for cell in line.strip('|').split('|')] for line in lines[2:]]
    assert [row[:4] for row in cells] == [['b_prune_hyper', '1', '16 → 8', '8'], ['adding', '1', '4 → 8', '4']]
    for row in cells:
        assert 0 <= float(row[4]) <= 100
        assert sum(map(float, row[5].split())) == 8
    # What is finished is not done again.
    result = task.parent / 'out/adding/seed_0/result.json'
    result.write_text(json.dumps(dict(json.loads(result.read_text()), moves=99)))
    run(monkeypatch, task, '--rows', 'adding')
    assert '| 99 |' in capsys.readouterr().out
    with pytest.raises(SystemExit, match='holds a run of another config'):
        run(monkeypatch, task, '--rows', 'adding', '--cfg-options', 'optim_wrapper.optimizer.lr=0.2')


def test_mean_and_spread():
    runs = [dict(metrics=dict(mIoU=value), start=[2, 2], distribution=[1, 3], moves=1) for value in (10, 20)]
    assert table3.table(dict(g=runs), ['mIoU']).splitlines()[2] == '| g | 2 | 4 ± 0 → 4 ± 0 | 1 ± 0 | 15 ± 7.1 | 1 3 |'


def test_mistakes_end_with_a_message(task, monkeypatch):
    text = task.read_text()
    with pytest.raises(SystemExit, match='no such config file: nowhere.py'):
        run(monkeypatch, Path('nowhere.py'))
    task.write_text(text.replace('custom_hooks', 'other_hooks'))
    with pytest.raises(SystemExit, match='must be a PRO-VPT config'):
        run(monkeypatch, task)
    task.write_text(text.replace("prompts=dict(type='StaticPrompts', num_tokens=[4, 4])", ''))
    with pytest.raises(SystemExit, match='must be a PRO-VPT config'):
        run(monkeypatch, task)
    task.write_text(text.replace("PromptRelocationHook', interval=1", "PromptRelocationHook', interval='x'"))
    with pytest.raises(SystemExit, match='interval must be an int'):
        run(monkeypatch, task, '--rows', 'g_provpt')
