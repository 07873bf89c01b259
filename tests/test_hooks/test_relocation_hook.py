import copy
import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from mmengine.hooks import Hook
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from test_hooks import toy_run
from test_hooks.toy_run import LR, OVERFLOW, ToyModel, make_runner, read_rows, relocation_hook
from torch import nn

from mmprovpt.hooks import PromptRelocationHook
from mmprovpt.relocation import ALLOCATORS, PRUNERS, IdlenessPruner, PPOAllocator, RelocationLog, Relocator

KEYS = ['period', 'iter', 'loss', 'prompt', 'from', 'to', 'idleness', 'previous_reward', 'distribution']


class Batches(Hook):
    """Notes the batches of every iteration and what each checkpoint, period and validation sees."""

    def __init__(self):
        self.batches, self.distributions = [], []

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        self.batches.append(data_batch)

    def before_save_checkpoint(self, runner, checkpoint):
        self.distributions.append(
            torch.bincount(checkpoint['state_dict']['prompts.block_index'], minlength=3).tolist())


class Kill(Hook):
    """Ends the run before an iteration, as a crash would."""
    priority = 'HIGHEST'

    def __init__(self, at):
        self.at = at

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        if runner.iter == self.at:
            raise KeyboardInterrupt


def slow_training(batches, period, accumulate=1):
    """What a run with relocation should do: SGD with momentum, and scores from autograd.grad."""
    model = ToyModel()
    params = list(model.parameters())
    memory = [torch.zeros_like(p) for p in params]
    relocator = Relocator(3, IdlenessPruner(), PPOAllocator(3, seed=3))
    rows, losses, scores, grads = [], [], [], []
    for step, batch in enumerate(batches):
        loss = model(batch['inputs'], batch['targets'], mode='loss')['loss']
        grad = torch.autograd.grad(loss, params)
        tokens = model.prompts.tokens.detach()
        index = next(i for i, p in enumerate(params) if p is model.prompts.tokens)
        scores.append([float(g @ p) for g, p in zip(grad[index], tokens)])
        losses.append(float(loss.detach()))
        grads.append(grad)
        remainder = len(batches) % accumulate
        group = remainder if step >= len(batches) - remainder else accumulate
        if len(grads) == group:
            for p, m, *parts in zip(params, memory, *grads):
                m.mul_(0.9).add_(sum(parts) / group)
                p.data -= LR * m
            grads = []
        if (step + 1) % period == 0:
            mean, score = sum(losses) / period, torch.tensor(scores).mean(0)
            last = step + 1 == len(batches)
            moves = [] if last else relocator.step(mean, score, model.prompts.block_index)
            move = moves[0] if moves else None
            if last:
                relocator.finish(mean)
            if move is not None:
                model.prompts.relocate(move.prompt, move.target)
                for grad in grads:  # half an update: what the old block asked for is forgotten
                    grad[index][move.prompt] = 0
            values = move or (None, ) * 4
            rows.append(dict(zip(KEYS, [
                len(rows) + 1, step + 1, mean, *values, relocator.last_reward,
                model.prompts.distribution.tolist()])))
            losses, scores = [], []
    return model, rows


def assert_rows(actual, expected):
    assert len(actual) == len(expected)
    for row, other in zip(actual, expected):
        assert list(row)[:len(KEYS)] == KEYS
        assert row['distribution'] == other['distribution']
        for key in KEYS[:-1]:
            if other[key] is None:
                assert row[key] is None, key
            else:
                assert row[key] == pytest.approx(other[key], rel=1e-4, abs=1e-5), key


def state_dict_of(model):
    return {key: value.clone() for key, value in model.state_dict().items()}


@pytest.mark.parametrize('case', ['epoch', 'two epochs', 'iterations', 'iterations in epochs',
                                  'accumulation'])
def test_equals_a_slow_training_loop(tmp_path, case):
    hook, options, period, accumulate = dict(), dict(epochs=6), 6, 1
    if case == 'two epochs':
        hook, period = dict(interval=2), 12
    elif case == 'iterations':
        hook, options, period = dict(interval=4, by_epoch=False), dict(iters=24), 4
    elif case == 'iterations in epochs':
        hook, period = dict(interval=4, by_epoch=False), 4
    elif case == 'accumulation':  # 30 iterations leave a last update of two
        options = dict(epochs=5, optim_wrapper=dict(accumulative_counts=4))
        accumulate = 4
    batches = Batches()
    runner = make_runner(tmp_path, hook, hooks=[batches], **options)
    runner.train()
    model, rows = slow_training(batches.batches, period, accumulate)
    assert sum(row['prompt'] is not None for row in rows) >= 2
    assert_rows(read_rows(tmp_path), rows)
    torch.testing.assert_close(runner.model.state_dict(), model.state_dict())


def test_a_run_without_the_hook_is_the_same_but_for_the_moves(tmp_path, monkeypatch):
    """Measuring changes nothing: with a pruner that never prunes, training is bit-identical."""
    monkeypatch.setattr(IdlenessPruner, 'prune', lambda self, idleness, eligible: None)
    for name, hook in (('with', dict()), ('without', None)):
        make_runner(tmp_path / name, hook).train()
    one, other = (torch.load(tmp_path / name / 'epoch_4.pth', weights_only=False)['state_dict']
                  for name in ('with', 'without'))
    assert all(torch.equal(one[key], other[key]) for key in one)


def test_checkpoints_hold_tuned_prompts_only(tmp_path):
    batches = Batches()
    make_runner(tmp_path, dict(), hooks=[batches]).train()
    distributions = [[2, 2, 2]] + [row['distribution'] for row in read_rows(tmp_path)]
    # The checkpoint of an epoch precedes the relocation that the epoch leads to.
    assert batches.distributions == distributions[:4]
    assert distributions[4] == distributions[3]  # the end of training moves nothing


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


@pytest.mark.parametrize('wrapper', [dict(), dict(accumulative_counts=3)])
def test_loss_scale_is_undone(tmp_path, wrapper):
    runs = {}
    for name in ('OptimWrapper', 'ScaledOptimWrapper'):
        make_runner(tmp_path / name, dict(), optim_wrapper=dict(type=name, **wrapper)).train()
        runs[name] = read_rows(tmp_path / name)
    assert_rows(runs['ScaledOptimWrapper'], runs['OptimWrapper'])


def test_an_overflow_is_dropped(tmp_path):
    batches = Batches()
    runner = make_runner(tmp_path, dict(), hooks=[batches], poison=OVERFLOW,
                         optim_wrapper=dict(type='ScaledOptimWrapper'))
    runner.train()
    overflows = [bool((b['inputs'] == OVERFLOW).any()) for b in batches.batches]
    assert sum(overflows) == 4  # once per epoch
    rows = read_rows(tmp_path)
    assert all(row['loss'] is not None for row in rows)
    # The score is that of the other five iterations; the loss is that of all.
    sums = torch.load(tmp_path / 'epoch_1.pth', weights_only=False)['prompt_relocation']['session']['criterion']['sums']
    assert sums[-4:].isfinite().all() and sums[-3:].tolist() == [5, 5, 1]
    first = [b for b, bad in zip(batches.batches[:6], overflows) if not bad]
    _, expected = slow_training(first, period=5)
    assert float(sums[-4]) / 5 == pytest.approx(expected[0]['loss'], rel=1e-5)
    assert rows[0]['loss'] > 10 * expected[0]['loss']


@pytest.mark.parametrize('poison', [OVERFLOW, float('inf')])
def test_a_period_without_a_finite_iteration_moves_nothing(tmp_path, poison):
    runner = make_runner(tmp_path, dict(), poison=poison, batch_size=24,
                         optim_wrapper=dict(type='ScaledOptimWrapper'))
    runner.train()
    rows = read_rows(tmp_path)
    assert [row['prompt'] for row in rows] == [None] * 4
    assert [row['previous_reward'] for row in rows] == [None] * 4
    log, = tmp_path.glob('*/*.log')
    assert log.read_text().count('the period is skipped (1 iterations were not finite)') == 4


def test_an_incomplete_last_period_gives_no_reward(tmp_path):
    make_runner(tmp_path, dict(interval=4, by_epoch=False), iters=10).train()
    rows = read_rows(tmp_path)
    assert [row['iter'] for row in rows] == [4, 8]  # the third would have said what the second move was worth
    assert rows[0]['previous_reward'] is None and rows[1]['previous_reward'] is not None


def test_a_period_longer_than_training_does_nothing(tmp_path):
    runner = make_runner(tmp_path, dict(interval=9))
    runner.train()
    assert not list(tmp_path.glob('*/relocations.jsonl'))
    assert runner.model.prompts.distribution.tolist() == [2, 2, 2]
    assert not list(tmp_path.glob('*/prompt_distribution.png'))


def test_scalars_reach_tensorboard_and_the_log(tmp_path):
    backends = [dict(type='TensorboardVisBackend'), dict(type='LocalVisBackend')]
    runner = make_runner(tmp_path, dict(), epochs=6,
                         visualizer=dict(type='Visualizer', vis_backends=backends))
    runner.train()
    rows = read_rows(tmp_path)
    events, = tmp_path.glob('*/vis_data/events*')
    reader = EventAccumulator(str(events))
    reader.Reload()
    logged = {tag.rsplit('/')[-1]: {e.step: e.value for e in reader.Scalars(tag)}
              for tag in reader.Tags()['scalars'] if tag.startswith('train/relocation/')}
    assert logged['loss'] == pytest.approx({row['iter']: row['loss'] for row in rows}, rel=1e-5)
    assert logged['idleness'] == pytest.approx(
        {row['iter']: row['idleness'] for row in rows if row['idleness'] is not None}, rel=1e-5)
    # A reward is known, and so logged, when the next period has closed.
    assert logged['reward'] == pytest.approx(
        {row['iter']: row['previous_reward'] for row in rows if row['previous_reward'] is not None}, rel=1e-5)
    assert {'entropy', 'approx_kl', 'clip_fraction', 'explained_variance'} <= set(logged)
    log, = tmp_path.glob('*/*.log')
    assert log.read_text().count('Relocation, period ') == 6
    assert 'train/relocation/idleness' in next(tmp_path.glob('*/vis_data/scalars.json')).read_text()


def test_heat_map_is_drawn(tmp_path):
    make_runner(tmp_path, dict()).train()
    path, = tmp_path.glob('*/prompt_distribution.png')
    with Image.open(path) as image:
        image.verify()
    log, = tmp_path.glob('*/*.log')
    assert str(path) in log.read_text()


def trained_session(tmp_path, widths, **optimizer):
    """A session whose run has ended, so that the optimizer remembers something of every prompt."""
    runner = make_runner(tmp_path, dict(), model=ToyModel(widths), epochs=1,
                         optim_wrapper=dict(optimizer=dict(lr=LR, **optimizer)))
    runner.train()
    hook = relocation_hook(runner)
    memory = runner.optim_wrapper.optimizer.state[hook.session.prompts.tokens]
    return hook.session, {k: v for k, v in memory.items() if v is not None and v.ndim == 2}


@pytest.mark.parametrize('optimizer', [dict(type='SGD', momentum=0.9),
                                       dict(type='AdamW', amsgrad=True)])
def test_a_rewritten_row_loses_its_moments(tmp_path, optimizer):
    session, memory = trained_session(tmp_path, (4, 4, 6), **optimizer)
    assert len(memory) == (1 if optimizer['type'] == 'SGD' else 3)
    before = copy.deepcopy(memory)
    tokens = session.prompts.tokens
    tokens.grad = torch.ones_like(tokens)
    session.apply([(0, 1)])  # as wide: keeps all but the gradient it had in the old block
    assert all(torch.equal(memory[k], before[k]) for k in memory)
    assert tokens.grad[0].eq(0).all() and tokens.grad[1:].eq(1).all()
    session.apply([(1, 2)])  # wider
    for name, moment in memory.items():
        assert before[name][1].any() and not moment[1].any()
        rest = [0, 2, 3, 4, 5]
        assert torch.equal(moment[rest], before[name][rest])
    assert session.prompts.distribution.tolist() == [0, 3, 3]


@pytest.mark.parametrize('hook,message', [
    (dict(interval=0), 'interval must be an int >= 1, but is 0'),
    (dict(interval=1.5), 'interval must be an int'),
    (dict(pruner=dict(type='Pruner')), "type='Pruner' is unknown; known are .*IdlenessPruner"),
    (dict(pruner=dict(type='IdlenessPruner', criterion='x')), "criterion 'x'; known are taylor"),
    (dict(allocator=dict(type='PPOAllocator', lr=1)), 'no argument lr; known are .*lr_actor'),
    (dict(allocator=dict(type='PPOAllocator', prior='need')), 'no prior any more: .*NeedAllocator'),
    (dict(allocator=dict(type='VirtualAllocator')), 'no VirtualAllocator any more: .*use PPOAllocator'),
    (dict(draw_interval=0), 'no draw_interval any more: the picture is drawn after training'),
    (dict(feature_stability=3), 'no feature_stability any more: benchmarks/feature_stability.py'),
    (dict(draw=3), "no argument 'draw'"),
])
def test_wrong_arguments_raise_when_built(hook, message):
    with pytest.raises(ValueError, match=message):
        PromptRelocationHook(**hook)


@pytest.mark.parametrize('kinds, name', [(PRUNERS, 'ShrinkingPruner'), (ALLOCATORS, 'JointPPOAllocator')])
def test_ablations_say_where_they_are(kinds, name, monkeypatch):
    monkeypatch.setitem(kinds, name, None)  # somebody else may have imported them
    with pytest.raises(ValueError, match=f'no {name} any more: .*import benchmarks.table3.ablations by custom_imports'):
        kinds.check(dict(type=name))


class Two(ToyModel):
    def __init__(self):
        super().__init__()
        self.teacher = ToyModel()


class Without(ToyModel):
    def __init__(self):
        super().__init__()
        self.prompts = nn.Identity()


class Frozen(ToyModel):
    def __init__(self):
        super().__init__()
        self.prompts.tokens.requires_grad_(False)


@pytest.mark.parametrize('model,hook,options,message', [
    (Two, dict(), dict(), 'must have one set of prompts, but has 2: prompts, teacher.prompts'),
    (Without, dict(), dict(), 'must have one set of prompts, but has 0; give'),
    (Frozen, dict(), dict(), 'needs trained prompts'),
    (lambda: ToyModel(num_tokens=0), dict(), dict(), 'no prompt to relocate'),
    (ToyModel, dict(), dict(iters=4), 'by_epoch=True.* set by_epoch=False'),
])
def test_what_cannot_work_raises_before_training(tmp_path, model, hook, options, message):
    runner = make_runner(tmp_path, hook, model=model(), **options)
    with pytest.raises(ValueError, match=message):
        runner.train()


def test_averaged_weights_follow_the_relocations(tmp_path):
    runner = make_runner(tmp_path, dict(), hooks=[dict(type='EMAHook', momentum=0.1)])
    runner.train()
    averaged = torch.load(tmp_path / 'epoch_4.pth', weights_only=False)['state_dict']
    assert torch.equal(averaged['prompts.block_index'], runner.model.prompts.block_index)
    assert not torch.equal(averaged['prompts.tokens'], runner.model.prompts.tokens)
    plain = make_runner(tmp_path / 'plain', dict())
    plain.train()
    assert read_rows(tmp_path) == read_rows(tmp_path / 'plain')


def test_a_second_hook_is_refused(tmp_path):
    runner = make_runner(tmp_path, dict(), hooks=[dict(type='mmprovpt.PromptRelocationHook')])
    with pytest.raises(ValueError, match='more than one PromptRelocationHook, .*leave one'):
        runner.train()


def test_what_cannot_be_written_warns_and_ends_nothing(tmp_path, monkeypatch):
    append = RelocationLog.append

    def full(*args):
        raise OSError(28, 'No space left on device')

    def append_but_one(log, rows):
        return full() if rows[0]['period'] == 2 else append(log, rows)

    monkeypatch.setattr(RelocationLog, 'append', append_but_one)
    monkeypatch.setattr('mmprovpt.visualization.plot_relocation', full)
    runner = make_runner(tmp_path, dict(), hooks=[Broken()])
    runner.train()
    text = next(tmp_path.glob('*/*.log')).read_text()
    assert runner.epoch == 4 and relocation_hook(runner).session.period == 4
    assert text.count('will lack period 2: [Errno 28]') == text.count('could not be drawn: [Errno 28]') == 1
    assert text.count('could not be written: no network') == 4
    assert [row['period'] for row in read_rows(tmp_path)] == [1, 3, 4]


class Broken(Hook):
    """A visualisation backend that fails."""

    def before_train(self, runner):
        add_scalars = runner.visualizer.add_scalars

        def failing(scalars, **kwargs):
            if 'train/relocation/loss' in scalars:
                raise ConnectionError('no network')
            add_scalars(scalars, **kwargs)

        runner.visualizer.add_scalars = failing


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


def test_another_allocator_on_resume_is_named(tmp_path):
    make_runner(tmp_path, dict(), epochs=2).train()
    other = dict(allocator=dict(type='ThompsonAllocator'))
    with pytest.raises(ValueError, match='with the allocator PPOAllocator, but this one has ThompsonAllocator'):
        make_runner(tmp_path, other, resume=True, epochs=3).train()


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


def test_hook_can_be_copied(tmp_path):
    copy.deepcopy(PromptRelocationHook())
    runner = make_runner(tmp_path, dict(), epochs=1)
    runner.train()
    copied = copy.deepcopy(relocation_hook(runner)).session
    assert copied.period == 1 and copied.prompts is not relocation_hook(runner).session.prompts


def test_allocator_is_seeded_by_the_runner_or_its_own_config(tmp_path):
    generators = []
    for number, allocator in enumerate([dict(), dict(seed=3), dict(seed=4)]):
        runner = make_runner(tmp_path / str(number), epochs=1,
                             hook=dict(allocator=dict(type='PPOAllocator', **allocator)))
        runner.train()
        generators.append(relocation_hook(runner).session.relocator.allocator.generator.initial_seed())
    assert generators == [3, 3, 4]


def test_two_processes(tmp_path):
    """Equal to one process on the joint batch; and in agreement where rows are drawn at random."""
    with socket.socket() as probe:
        probe.bind(('127.0.0.1', 0))
        port = probe.getsockname()[1]
    root = Path(__file__).parents[2]
    environment = dict(os.environ, MASTER_ADDR='127.0.0.1', MASTER_PORT=str(port), WORLD_SIZE='2',
                       OMP_NUM_THREADS='1', CUDA_VISIBLE_DEVICES='',
                       PYTHONPATH=f'{root}{os.pathsep}{os.environ.get("PYTHONPATH", "")}')
    processes = [
        subprocess.Popen([sys.executable, toy_run.__file__, str(tmp_path)], text=True,
                         stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                         env=dict(environment, RANK=str(rank), LOCAL_RANK=str(rank)))
        for rank in range(2)]
    outputs = [process.communicate(timeout=180)[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], '\n'.join(outputs)
    for equal in zip(*(torch.load(tmp_path / f'{rank}.pth') for rank in range(2))):
        for name in ('tokens', 'blocks', 'momentum'):
            assert torch.equal(equal[0][name], equal[1][name])
    for name in ('equal', 'unequal'):
        rows = read_rows(tmp_path / name)
        assert len(rows) == 5 and any(row['from'] != row['to'] for row in rows)
    make_runner(tmp_path / 'single', dict(), epochs=5).train()
    assert_rows(read_rows(tmp_path / 'equal'), read_rows(tmp_path / 'single'))
