import json

from mmprovpt.relocation import Move, RelocationHistory

KEYS = ['period', 'iter', 'loss', 'prompt', 'from', 'to', 'idleness', 'reward', 'distribution']


def example():
    history = RelocationHistory()
    history.initial = [2, 2]
    history.reward(None)
    history.add(10, 3.0, [Move(1, 0, 1, 0.5)], [1, 3])
    history.reward(0.25)
    history.add(20, float('nan'), [], [1, 3])
    return history


def test_rows_are_as_the_contract_says(tmp_path):
    path = tmp_path / 'relocations.jsonl'
    example().write(path)
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert [list(row) for row in rows] == [KEYS, KEYS]
    assert list(rows[0].values()) == [1, 10, 3.0, 1, 0, 1, 0.5, 0.25, [1, 3]]
    assert list(rows[1].values()) == [2, 20, None, None, None, None, None, None, [1, 3]]
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


def test_distributions_start_with_the_initial_one():
    assert example().distributions == [[2, 2], [1, 3], [1, 3]]


def test_state_is_a_copy_that_continues():
    history, other = example(), RelocationHistory()
    state = history.state_dict()
    history.add(30, 1.0, [], [1, 3])
    other.load_state_dict(state)
    assert len(other.rows) == 2
    other.add(30, 1.0, [], [1, 3])
    assert other.rows == history.rows and other.initial == history.initial


def test_prompts_of_one_period_share_period_and_reward():
    history = RelocationHistory()
    history.initial = [3, 0]
    history.add(10, 3.0, [Move(1, 0, 1, 0.5), Move(2, 0, 1, 0.25)], [1, 2])
    history.reward(0.125)
    history.add(20, 2.0, [], [1, 2])
    history.reward(None)
    values = [[row[key] for key in ('period', 'prompt', 'idleness', 'reward')] for row in history.rows]
    assert values == [[1, 1, 0.5, 0.125], [1, 2, 0.25, 0.125], [2, None, None, None]]
    assert history.distributions == [[3, 0], [1, 2], [1, 2]]
