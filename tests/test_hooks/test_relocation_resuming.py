"""What a checkpoint has of relocation, and how a run goes on from it."""
import json

import pytest
import torch
from mmengine.hooks import Hook
from test_hooks.toy_run import ToyModel, make_runner, read_rows


class Kill(Hook):
    """Ends the run before an iteration, as a crash would."""
    priority = 'HIGHEST'

    def __init__(self, at):
        self.at = at

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        if runner.iter == self.at:
            raise KeyboardInterrupt


@pytest.mark.parametrize('case', ['epoch', 'within an epoch', 'iterations', 'accumulation'])
def test_resumed_run_equals_the_uninterrupted_one(tmp_path, case):
    hook, options, kill = dict(), dict(epochs=6), 19
    if case == 'within an epoch':  # the checkpoint is inside of a period of two epochs
        hook, options = dict(interval=2), dict(epochs=8)
    elif case == 'iterations':  # so it is here: 4 and 8 in periods of 3
        hook = dict(interval=3, by_epoch=False)
        options = dict(iters=20, checkpoint=dict(interval=4, by_epoch=False))
        kill = 11
    elif case == 'accumulation':
        options = dict(epochs=6, optim_wrapper=dict(accumulative_counts=3))
    make_runner(tmp_path / 'whole', hook, **options).train()
    with pytest.raises(KeyboardInterrupt):
        make_runner(tmp_path / 'part', hook, hooks=[Kill(kill)], **options).train()
    runner = make_runner(tmp_path / 'part', hook, model=ToyModel(seed=1), resume=True, **options)
    runner.train()
    whole = read_rows(tmp_path / 'whole')
    assert sum(row['prompt'] is not None for row in whole) >= 2
    assert read_rows(tmp_path / 'part') == whole
    last = 'iter_20.pth' if case == 'iterations' else f'epoch_{options["epochs"]}.pth'
    one, other = (torch.load(tmp_path / name / last, weights_only=False)
                  for name in ('whole', 'part'))
    assert all(torch.equal(one['state_dict'][key], other['state_dict'][key])
               for key in one['state_dict'])


def test_an_epoch_that_starts_over_does_not_relocate_twice(tmp_path):
    """A checkpoint by iterations in a loop of epochs: the epoch begins anew on resuming."""
    options = dict(epochs=3, checkpoint=dict(interval=4, by_epoch=False))
    with pytest.raises(KeyboardInterrupt):
        make_runner(tmp_path, dict(), hooks=[Kill(9)], **options).train()  # saved at 8, in epoch 1
    make_runner(tmp_path, dict(), resume=True, **options).train()
    assert [row['period'] for row in read_rows(tmp_path)] == [1, 2, 3]


def test_checkpoint_state_is_plain(tmp_path):
    make_runner(tmp_path, dict()).train()
    checkpoint = torch.load(tmp_path / 'epoch_3.pth', weights_only=False)
    torch.save(checkpoint['prompt_relocation'], tmp_path / 'state.pth')
    state = torch.load(tmp_path / 'state.pth', weights_only=True)
    assert state['session']['period'] == 2 and state['session']['version'] == 2
    assert state['session']['criterion']['sums'][-2] == 6


def test_checkpoints_do_not_grow(tmp_path):
    """Per period there is one more line in the log, and nothing else."""
    make_runner(tmp_path, dict(interval=1, by_epoch=False), iters=120,
                checkpoint=dict(interval=30, by_epoch=False, max_keep_ckpts=-1)).train()
    sizes = []
    for iteration in (30, 120):
        state = torch.load(tmp_path / f'iter_{iteration}.pth', weights_only=False)['prompt_relocation']
        torch.save(state, tmp_path / 'state.pth')
        sizes.append((tmp_path / 'state.pth').stat().st_size)
    assert abs(sizes[1] - sizes[0]) < 200 and len(read_rows(tmp_path)) == 120


def test_checkpoint_of_a_run_without_the_hook_warns(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        make_runner(tmp_path, None, hooks=[Kill(15)]).train()
    runner = make_runner(tmp_path, dict(), resume=True)
    runner.train()
    logs = [path.read_text() for path in tmp_path.glob('*/*.log')]
    assert any('of a run without PromptRelocationHook' in log for log in logs)
    rows = read_rows(tmp_path)
    # Epochs 0 and 1 were not measured; the periods of epochs 2 and 3 were.
    assert [(row['period'], row['iter']) for row in rows] == [(1, 18), (2, 24)]


def test_loaded_weights_do_not_bring_their_relocation_along(tmp_path):
    make_runner(tmp_path / 'old', dict()).train()
    make_runner(tmp_path / 'new', dict(), epochs=2,
                load_from=str(tmp_path / 'old' / 'epoch_4.pth')).train()
    assert [row['period'] for row in read_rows(tmp_path / 'new')] == [1, 2]


def test_other_blocks_in_the_checkpoint_raise(tmp_path):
    make_runner(tmp_path, dict(), epochs=2).train()
    runner = make_runner(tmp_path, dict(), model=ToyModel((4, 4, 4, 4)), resume=True)
    with pytest.raises(ValueError, match='about 3 blocks, but the model has 4'):
        runner.train()


def test_another_allocator_on_resume_is_named(tmp_path):
    make_runner(tmp_path, dict(), epochs=2).train()
    other = dict(allocator=dict(type='ThompsonAllocator'))
    with pytest.raises(ValueError, match='with the allocator PPOAllocator, but this one has ThompsonAllocator'):
        make_runner(tmp_path, other, resume=True, epochs=3).train()


def test_the_log_is_appended_and_a_resumed_one_ends_at_the_checkpoint(tmp_path):
    """It has the lines of the run before up to the checkpoint, as they were, and no more of them."""
    with pytest.raises(KeyboardInterrupt):  # in epoch 3: three periods have closed, the checkpoint knows of two
        make_runner(tmp_path, dict(), hooks=[Kill(19)], epochs=6).train()
    log, = tmp_path.glob('*/relocations.jsonl')
    lines = log.read_text().splitlines(keepends=True)
    assert [json.loads(line)['period'] for line in lines] == [1, 2, 3]
    log.write_text(lines[0].replace('"iter": 6', '"iter": 7') + ''.join(lines[1:]) + '{"period": 4, "it')
    make_runner(tmp_path, dict(), resume=True, epochs=6).train()
    rows = read_rows(tmp_path)
    assert [row['iter'] for row in rows] == [7, 12, 18, 24, 30, 36]


def test_a_resumed_run_without_the_log_of_the_run_before(tmp_path):
    make_runner(tmp_path, dict(), epochs=3).train()
    next(tmp_path.glob('*/relocations.jsonl')).unlink()
    make_runner(tmp_path, dict(), resume=True, epochs=5).train()
    assert [row['period'] for row in read_rows(tmp_path)] == [3, 4, 5]
    assert any('will begin with period 3' in log.read_text() for log in tmp_path.glob('*/*.log'))


def old_checkpoint(path, rows):
    """Rewrite the state of relocation as releases before the session wrote it."""
    checkpoint = torch.load(path, weights_only=False)
    state = checkpoint['prompt_relocation']
    session = state['session']
    rows = [dict({key: value for key, value in row.items() if key != 'previous_reward'}, reward=None) for row in rows]
    checkpoint['prompt_relocation'] = dict(
        boundary=state['boundary'], idleness=session['criterion'], loss=session['loss'], features=None,
        relocator=session['relocator'], history=dict(initial=[2, 2, 2], rows=rows))
    torch.save(checkpoint, path)


def test_checkpoints_of_earlier_releases_resume(tmp_path):
    make_runner(tmp_path / 'whole', dict(), epochs=6).train()
    make_runner(tmp_path / 'part', dict(), epochs=3).train()
    whole, part = read_rows(tmp_path / 'whole'), read_rows(tmp_path / 'part')[:2]
    old_checkpoint(tmp_path / 'part' / 'epoch_3.pth', part)
    make_runner(tmp_path / 'part', dict(), resume=True, epochs=6).train()
    rows = read_rows(tmp_path / 'part')
    for row, expected in zip(rows, whole):
        assert row == dict(expected, previous_reward=row['previous_reward'])
    assert [row['previous_reward'] for row in rows[2:]] == [row['previous_reward'] for row in whole[2:]]
    assert len(rows) == 6
