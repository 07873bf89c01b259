"""Options of the hook beyond the paper's setting, in a real Runner."""
import json
from collections import Counter

import pytest
from test_hooks.toy_run import ToyModel, make_runner, relocation_hook

from mmprovpt.hooks import PromptRelocationHook
from mmprovpt.visualization import read_log


def train(folder, **hook):
    runner = make_runner(folder, hook=hook, epochs=6)
    runner.train()
    path, = folder.glob('*/relocations.jsonl')
    return runner, [json.loads(line) for line in path.read_text().splitlines()]


def test_several_prompts_per_period(tmp_path):
    runner, rows = train(tmp_path, relocate_per_period=2, pruner=dict(type='RandomPruner'),
                         allocator=dict(type='UniformAllocator'))
    # Five relocations of two prompts; the sixth period ends the training.
    assert Counter(row['period'] for row in rows) == {1: 2, 2: 2, 3: 2, 4: 2, 5: 2, 6: 1}
    counts = [2, 2, 2]
    for first, second in zip(rows[0:10:2], rows[1:10:2]):
        assert first['prompt'] != second['prompt'] and first['reward'] == second['reward'] is not None
        for row in (first, second):
            counts[row['from']] -= 1
            counts[row['to']] += 1
        assert first['distribution'] == second['distribution'] == counts
    assert relocation_hook(runner)._pool.distribution.tolist() == counts


def test_reward_by_the_last_part_of_a_period(tmp_path):
    """Rewards add up from the logged losses and idleness (001 Eq. 8), whole or tail."""
    losses = {}
    for tail in (1.0, 0.5):
        _, rows = train(tmp_path / str(tail), loss_tail=tail, pruner=dict(type='RandomPruner'),
                        allocator=dict(type='UniformAllocator'))
        losses[tail] = [row['loss'] for row in rows]
        for row, after in zip(rows, rows[1:]):
            assert row['reward'] == pytest.approx(row['loss'] - row['idleness'] - after['loss'], abs=1e-6)
    assert all(a != b for a, b in zip(losses[1.0], losses[0.5]))


@pytest.mark.parametrize('interval, drawn', [(2, [2, 4, 6, 'end']), (0, ['end'])])
def test_draw_interval(tmp_path, monkeypatch, interval, drawn):
    periods = []
    draw = PromptRelocationHook._draw

    def recording(self, runner):
        periods.append(self.history.periods[-1]['period'])
        return draw(self, runner)

    monkeypatch.setattr(PromptRelocationHook, '_draw', recording)
    train(tmp_path, draw_interval=interval)
    assert periods == [6 if period == 'end' else period for period in drawn]
    assert next(tmp_path.glob('*/prompt_distribution.png')).read_bytes().startswith(b'\x89PNG')


@pytest.mark.parametrize('value', [-1, 1.5])
def test_bad_draw_interval(value):
    with pytest.raises(ValueError, match='draw_interval must be an int >= 0'):
        PromptRelocationHook(draw_interval=value)


def test_pruning_takes_prompts_out_until_its_share_is_left(tmp_path):
    runner, rows = train(tmp_path, pruner=dict(type='ShrinkingPruner', keep=0.5),
                         allocator=dict(type='RetireAllocator'))
    assert [row['to'] for row in rows] == [None] * 6
    assert [row['prompt'] is None for row in rows] == [False] * 3 + [True] * 3
    assert [sum(row['distribution']) for row in rows] == [5, 4, 3, 3, 3, 3]
    log = next(tmp_path.glob('*/*.log')).read_text()
    assert f'prompt {rows[0]["prompt"]} is taken out of block {rows[0]["from"]}' in log
    assert relocation_hook(runner)._pool.distribution.tolist() == rows[-1]['distribution']
    drawn = read_log(next(tmp_path.glob('*/relocations.jsonl')))
    assert drawn.counts.sum(0).tolist() == [6, 5, 4, 3, 3, 3, 3]


def test_adding_gives_spare_prompts_to_blocks(tmp_path):
    runner = make_runner(tmp_path, epochs=4, model=ToyModel(num_tokens=1, num_spare=2), hook=dict(
        pruner=dict(type='SparePruner'), allocator=dict(type='PPOAllocator')))
    runner.train()
    path, = tmp_path.glob('*/relocations.jsonl')
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert [row['from'] for row in rows] == [None] * 4
    assert [sum(row['distribution']) for row in rows] == [4, 5, 5, 5]
    assert rows[0]['reward'] == pytest.approx(rows[0]['loss'] - rows[1]['loss'], abs=1e-6)
    assert 'a new prompt, 3, comes to block' in next(tmp_path.glob('*/*.log')).read_text()
    trained = runner.optim_wrapper.optimizer.state[runner.model.prompts.tokens]['momentum_buffer']
    assert trained.abs().sum(1).min() > 0, 'all of them are trained in the end'
    assert read_log(path).counts.sum(0).tolist() == [3, 4, 5, 5, 5]


@pytest.mark.parametrize('pruner', [dict(type='SparePruner'), dict(type='ShrinkingPruner', keep=1.0)])
def test_a_pruner_without_a_choice_is_refused(tmp_path, pruner):
    runner = make_runner(tmp_path, hook=dict(pruner=pruner))
    with pytest.raises(ValueError, match='blocks own 6 prompts, and 0 are spare'):
        runner.train()
