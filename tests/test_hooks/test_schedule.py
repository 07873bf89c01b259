"""A schedule in which no prompt will ever move is warned of wherever a run comes from."""
import pytest
from test_hooks.toy_run import make_runner, read_rows


@pytest.mark.parametrize('hook, length, warned', [
    (dict(interval=3), dict(epochs=3), True), (dict(interval=2), dict(epochs=3), False), ({}, dict(epochs=1), True),
    (dict(interval=5, by_epoch=False), dict(iters=4), True), (dict(interval=5, by_epoch=False), dict(iters=6), False),
    (dict(interval=12, by_epoch=False), dict(epochs=2), True),  # an epoch has 6 iterations
    (dict(interval=11, by_epoch=False), dict(epochs=2), False)])
def test_an_interval_after_which_training_is_over(hook, length, warned, tmp_path):
    make_runner(tmp_path, dict(hook, pruner=dict(type='RandomPruner')), **length).train()
    log, = tmp_path.glob('*/*.log')
    unit = 'epochs' if hook.get('by_epoch', True) else 'iterations'
    text = f'has interval={hook.get("interval", 1)}, and training has {12 if hook.get("interval") == 12 else ""}'
    assert (text in log.read_text() and f' {unit}: no prompt will ever move' in log.read_text()) == warned
    assert any(row['prompt'] is not None for row in read_rows(tmp_path)) != warned
