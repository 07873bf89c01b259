import json

from mmprovpt.relocation import Move, Period, RelocationLog
from mmprovpt.relocation.history import read_rows, rows_of

KEYS = ['period', 'iter', 'loss', 'prompt', 'from', 'to', 'idleness', 'previous_reward', 'distribution',
        'block_idleness', 'entropy']


def example():
    moves = [Move(1, 0, 1, 0.5), Move(2, -1, 1, 0.25)]
    return [*rows_of(Period(1, 3.0, moves, None, [1, 3], [0.5, None], dict(entropy=1.5), 0), 10),
            *rows_of(Period(2, float('nan'), [], 0.25, [1, 3], [float('inf'), 1.0], dict(entropy=1.5), 0), 20)]


def test_rows_are_as_the_contract_says():
    first, second, third = example()
    assert list(first) == list(second) == list(third) == KEYS
    assert list(first.values()) == [1, 10, 3.0, 1, 0, 1, 0.5, None, [1, 3], [0.5, None], 1.5]
    assert list(second.values()) == [1, 10, 3.0, 2, None, 1, 0.25, None, [1, 3], [0.5, None], 1.5]
    assert list(third.values()) == [2, 20, None, None, None, None, None, 0.25, [1, 3], [None, 1.0], None]


def test_a_log_is_appended_and_never_rewritten(tmp_path):
    path = tmp_path / 'relocations.jsonl'
    path.write_text('what was there\n')
    log = RelocationLog(path)
    log.append(example()[:2])
    log.append(example()[2:])
    first, *lines = path.read_text().splitlines()
    assert first == 'what was there' and [json.loads(line) for line in lines] == example()
    log.restart(example()[:2])
    assert read_rows(path) == example()[:2]
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


def test_reading_stops_at_a_period_and_leaves_out_what_was_cut_off(tmp_path):
    path = tmp_path / 'log'
    RelocationLog(path).append(example())
    assert read_rows(path, 1) == example()[:2]
    with path.open('a') as file:
        file.write('{"period": 3}')  # whoever wrote it may have been about to write more
    assert read_rows(path) == example()


def test_logs_of_earlier_releases(tmp_path):
    """A reward stood in the row of its own relocations, where it was filled in later."""
    path = tmp_path / 'log'
    old = [{'period': 1, 'reward': 0.5, 'to': 1}, {'period': 1, 'reward': 0.5, 'to': 2}, {'period': 2, 'reward': None}]
    path.write_text(''.join(json.dumps(row) + '\n' for row in old))
    assert read_rows(path) == [{'period': 1, 'previous_reward': None, 'to': 1},
                               {'period': 1, 'previous_reward': None, 'to': 2}, {'period': 2, 'previous_reward': 0.5}]
