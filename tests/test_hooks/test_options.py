"""Options of the hook beyond the paper's setting, in a real Runner."""
import json
from collections import Counter

import pytest
from test_hooks.toy_run import make_runner, relocation_hook


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
    assert [row['previous_reward'] is None for row in rows] == [True] * 2 + [False] * 9
    counts = [2, 2, 2]
    for first, second in zip(rows[0:10:2], rows[1:10:2]):
        assert first['prompt'] != second['prompt'] and first['previous_reward'] == second['previous_reward']
        for row in (first, second):
            counts[row['from']] -= 1
            counts[row['to']] += 1
        assert first['distribution'] == second['distribution'] == counts
    assert relocation_hook(runner).session.prompts.distribution.tolist() == counts


def test_reward_by_the_last_part_of_a_period(tmp_path):
    """Rewards add up from the logged losses and idleness (PRO-VPT Eq. 8), whole or tail."""
    losses = {}
    for tail in (1.0, 0.5):
        _, rows = train(tmp_path / str(tail), loss_tail=tail, pruner=dict(type='RandomPruner'),
                        allocator=dict(type='UniformAllocator'))
        losses[tail] = [row['loss'] for row in rows]
        for row, after in zip(rows, rows[1:]):
            assert after['previous_reward'] == pytest.approx(row['loss'] - row['idleness'] - after['loss'], abs=1e-6)
    assert all(a != b for a, b in zip(losses[1.0], losses[0.5]))
