"""The hook of relocation in a Runner, against a slow loop that is written differently; several processes."""
import copy
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from mmengine.hooks import Hook
from test_hooks import toy_run
from test_hooks.toy_run import LR, OVERFLOW, ToyModel, make_runner, read_rows, relocation_hook

from mmprovpt.hooks import PromptRelocationHook
from mmprovpt.relocation import IdlenessPruner, PPOAllocator, Relocator

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


def test_averaged_weights_follow_the_relocations(tmp_path):
    runner = make_runner(tmp_path, dict(), hooks=[dict(type='EMAHook', momentum=0.1)])
    runner.train()
    averaged = torch.load(tmp_path / 'epoch_4.pth', weights_only=False)['state_dict']
    assert torch.equal(averaged['prompts.block_index'], runner.model.prompts.block_index)
    assert not torch.equal(averaged['prompts.tokens'], runner.model.prompts.tokens)
    plain = make_runner(tmp_path / 'plain', dict())
    plain.train()
    assert read_rows(tmp_path) == read_rows(tmp_path / 'plain')


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
