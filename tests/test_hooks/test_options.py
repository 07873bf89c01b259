"""Options of the hook beyond the paper's setting, in a real Runner."""
import json
from collections import Counter

import pytest
from test_hooks.toy_run import make_runner, relocation_hook

from mmprovpt.hooks import PromptRelocationHook


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
