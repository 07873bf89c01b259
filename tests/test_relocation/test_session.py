"""The protocol of relocation in a loop of one's own: moves, averages, state, mistakes."""
import copy
import io
import json
import math
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
import torch
from mmengine.model import ExponentialMovingAverage
from test_hooks.toy_run import ToyModel
from test_relocation import session_ranks
from test_relocation.loop import ANY, Loop
from timm.utils.model_ema import ModelEmaV3
from torch.optim.swa_utils import AveragedModel
from torch.utils.checkpoint import checkpoint

from mmprovpt.relocation import ALLOCATORS, CRITERIA, Allocator, RelocationSession, true_idleness
from mmprovpt.visualization import run_of_periods

IDLEST = dict(pruner=dict(type='IdlenessPruner', criterion='taylor'), allocator=dict(type='PPOAllocator'))


def test_periods_by_hand():
    """Rewards follow Eq. 8, moves are carried out, and the last period is only rewarded."""
    loop = Loop(**ANY)
    blocks, periods = loop.model.prompts.block_index.clone(), loop.run(4)
    loop.train()
    periods.append(loop.session.finish())
    assert [period.number for period in periods] == [1, 2, 3, 4, 5] and loop.session.period == 5
    assert [len(period.moves) for period in periods] == [1, 1, 1, 1, 0]
    for period in periods:
        for move in period.moves:
            assert blocks[move.prompt] == move.source
            blocks[move.prompt] = move.target
    assert torch.equal(loop.model.prompts.block_index, blocks)
    assert periods[0].previous_reward is None
    for before, after in zip(periods, periods[1:]):
        assert after.previous_reward == pytest.approx(before.loss - before.moves[0].idleness - after.loss, abs=1e-6)


def test_a_step_is_an_iteration():
    """Whoever leaves it to the session trains and moves as by hand, and periods say where prompts are."""
    by_hand, loop = Loop(**ANY), Loop(**ANY)
    expected, periods = by_hand.run(3), []
    for _ in range(3):
        for _ in range(3):
            loop.session.step(lambda: loop.model(*loop.batch(), mode='loss')['loss'])
        periods.append(loop.session.close_period())
    assert periods == expected
    assert torch.equal(loop.model.prompts.tokens, by_hand.model.prompts.tokens)
    assert periods[-1].distribution == loop.model.prompts.distribution.tolist()
    run = run_of_periods(periods)
    assert run.counts.T.tolist() == [[2, 2, 2], *(period.distribution for period in periods)]


def test_nothing_measured_is_no_period():
    loop = Loop(**ANY)
    assert loop.session.close_period() is None and loop.session.finish() is None and loop.session.period == 0


AVERAGES = dict(
    torch=AveragedModel,
    torch_with_buffers=lambda model: AveragedModel(model, use_buffers=True),
    timm=lambda model: ModelEmaV3(model, decay=0.99),
    timm_in_float64=lambda model: ModelEmaV3(model, decay=0.99, dtype=torch.float64),
    mmengine=lambda model: ExponentialMovingAverage(model, momentum=0.01),
    mmengine_with_buffers=lambda model: ExponentialMovingAverage(model, momentum=0.01, update_buffers=True),
    not_updated=copy.deepcopy)


@pytest.mark.parametrize('name', AVERAGES)
def test_averages_move_along(name):
    """Owners always, and the rows of prompts that came to another width; other rows stay averages."""
    loop = Loop((4, 6, 8), [AVERAGES[name]] if name != 'not_updated' else [], **ANY)
    average = loop.averages[0] if loop.averages else copy.deepcopy(loop.model)
    if not loop.averages:
        loop.session.add_average(average)
    average = getattr(average, 'module', average)
    mine, crossed = loop.model.prompts, 0
    for _ in range(16):
        loop.train()
        before = average.prompts.tokens.detach().clone()
        move, = loop.session.close_period().moves
        assert torch.equal(average.prompts.block_index, mine.block_index)
        for block in range(3):  # what its next forward reads
            rows = average.prompts.rows(block)
            assert (0 if rows is None else len(rows)) == int((mine.block_index == block).sum())
        if move.source != move.target:
            torch.testing.assert_close(average.prompts.tokens[move.prompt], mine.tokens[move.prompt], check_dtype=False)
            crossed += 1
            before[move.prompt] = average.prompts.tokens[move.prompt].detach()
        assert torch.equal(average.prompts.tokens, before)
    assert crossed >= 4


def test_torch_alone_averages_owners():
    """What happens without the session: the reason to tell it of every average."""
    loop = Loop(**ANY)
    average = AveragedModel(loop.model, use_buffers=True)
    for _ in range(6):
        loop.train()
        average.update_parameters(loop.model)
        loop.session.close_period()
    average.update_parameters(loop.model)
    assert not torch.equal(average.module.prompts.block_index, loop.model.prompts.block_index)


def test_what_is_no_average_is_refused():
    loop = Loop(**ANY)
    for wrong in (loop.model, ToyModel((4, 4, 4, 4)), torch.nn.Linear(1, 1)):
        with pytest.raises(ValueError, match=r'a copy of the model, with prompts \(6, 4\), but this'):
            loop.session.add_average(wrong)
    # One that lags behind is brought up to date when it is added.
    average = ToyModel()
    loop.run(5)
    loop.session.add_average(average)
    assert torch.equal(average.prompts.block_index, loop.model.prompts.block_index)


def test_every_optimizer_forgets_a_rewritten_row():
    model = ToyModel((4, 6))
    optimizers = [torch.optim.AdamW(model.parameters(), amsgrad=True),
                  torch.optim.SGD(model.parameters(), momentum=0.9)]
    session = RelocationSession(model.prompts, optimizers, **ANY)
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    for optimizer in optimizers:
        optimizer.step()
    tokens = model.prompts.tokens
    states = [value for each in optimizers for value in each.state[tokens].values() if value.dim() == 2]
    assert len(states) == 4 and all(state.all() for state in states)
    session.apply([(1, 0)])  # its own block
    assert all(state.all() for state in states) and not tokens.grad[1].any()
    session.apply([(1, 1)])
    assert all(not state[1].any() and state[[0, 2, 3]].all() for state in states)
    assert tokens.grad[[0, 2, 3]].all()


@pytest.mark.parametrize('how', ['reentrant', 'no_grad'])
def test_prompts_without_gradient_raise_in_the_first_iteration(how):
    loop = Loop(**ANY)
    loop.session.begin_iteration()
    inputs, targets = loop.batch()
    if how == 'reentrant':  # the checkpoint sees no input that needs a gradient
        features = checkpoint(lambda x: loop.model(x), inputs, use_reentrant=True)
    else:
        with torch.no_grad():
            features = loop.model(inputs)
    loss = (features - targets).square().mean() + loop.model.head.weight.sum()
    loss.backward()
    with pytest.raises(RuntimeError, match='no prompt has got a gradient.*use_reentrant=False'):
        loop.session.end_iteration(loss)


def test_checkpointing_that_keeps_gradients_is_fine():
    loop = Loop(**ANY)
    loop.session.begin_iteration()
    inputs, targets = loop.batch()
    loss = (checkpoint(lambda x: loop.model(x), inputs, use_reentrant=False) - targets).square().mean()
    loss.backward()
    loop.session.end_iteration(loss)
    assert loop.session.close_period().loss == pytest.approx(float(loss.detach()))


def test_a_tail_needs_the_place_in_the_period():
    loop = Loop(loss_tail=0.5, **ANY)
    with pytest.raises(ValueError, match='loss_tail=0.5 needs to know where in the period'):
        loop.train(1)


def test_only_candidates_that_were_verified_move():
    loop = Loop(**dict(IDLEST, pruner=dict(IDLEST['pruner'], verify_top=3)))
    loop.train()
    idleness = loop.session.criterion.compute()[0]
    candidates = loop.session.candidates()
    assert candidates == idleness.topk(3).indices.tolist()
    batch = loop.batch()
    truth = true_idleness(loop.model.prompts, candidates, lambda: loop.model(*batch, mode='loss')['loss'])
    assert truth.shape == (3, ) and truth.abs().max() > 0
    move, = loop.session.close_period({candidates[0]: -0.5, candidates[1]: 0.25, candidates[2]: math.nan}).moves
    assert (move.prompt, move.idleness) == (candidates[1], 0.25)
    loop.train()
    assert loop.session.close_period({candidates[0]: math.nan}).moves == []
    assert Loop(**IDLEST).session.candidates() == []


@ALLOCATORS.register
class LastBlock(Allocator):
    """An allocator of a user."""

    def act(self, state, signals=None):
        return self.num_blocks - 1


@pytest.mark.parametrize('type_', ['LastBlock', LastBlock])
def test_an_allocator_of_ones_own(type_):
    loop = Loop(pruner=ANY['pruner'], allocator=dict(type=type_))
    assert [period.moves[0].target for period in loop.run(3)] == [2, 2, 2]


class Curious(Allocator):
    signals = ('gain', )


@pytest.mark.parametrize('options, message', [
    (dict(allocator=dict(type=Curious)), 'asks for the signals gain; known are need'),
    (dict(reward_baseline='trend'), "no 'trend' any more"),
    (dict(loss_tail=0), 'loss_tail must be in'),
    (dict(relocate_per_period=0), 'relocate_per_period must be at least 1'),
])
def test_wrong_options(options, message):
    with pytest.raises(ValueError, match=message):
        Loop(**dict(IDLEST, **options))


def test_prompts_that_nobody_trains():
    model = ToyModel()
    for optimizer in (torch.optim.SGD(model.head.parameters(), lr=1), []):
        with pytest.raises(ValueError, match='needs trained prompts'):
            RelocationSession(model.prompts, optimizer)


# State


def resumed(loop, other, state):
    """Continue ``loop`` in ``other``, by a state that was written and read."""
    other.model.load_state_dict(loop.model.state_dict())
    other.optimizer.load_state_dict(copy.deepcopy(loop.optimizer.state_dict()))
    other.generator.set_state(loop.generator.get_state())
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    other.session.load_state_dict(torch.load(file, weights_only=True))
    return other


def old_format(state, rows):
    """As releases before the session wrote it."""
    return dict(boundary=0, idleness=state['criterion'], loss=state['loss'], features=None,
                relocator=state['relocator'], history=dict(initial=[2, 2, 2], rows=rows))


@pytest.mark.parametrize('old', [False, True])
def test_a_resumed_session_continues(old):
    loop = Loop(**IDLEST)
    loop.run(3)
    loop.train(2)  # within a period
    state = loop.session.state_dict()
    if old:
        state = old_format(state, [dict(period=period, reward=None) for period in (1, 2, 3)])
    other = resumed(loop, Loop(**IDLEST), state)
    for each in (loop, other):
        each.train(1)
    one, two = ([each.session.close_period(), *each.run(4)] for each in (loop, other))
    assert one == two and [period.number for period in one] == [4, 5, 6, 7, 8]
    assert sum(len(period.moves) for period in one) >= 2


@pytest.mark.parametrize('change, message', [
    (dict(allocator=dict(type='ThompsonAllocator')), 'with the allocator PPOAllocator, but this one has Thompson'),
    (dict(pruner=dict(type='RandomPruner', criterion='taylor')), 'with the pruner IdlenessPruner, but this one has R'),
    (dict(pruner=dict(criterion='taylor_norm', type='IdlenessPruner')), 'with the criterion taylor, but this one'),
    (dict(allocator=dict(type='PPOAllocator', hidden=8)), '(?s)other options of theirs .*size mismatch'),
])
def test_another_pruner_or_allocator_is_named(change, message):
    state = Loop(**IDLEST).session.state_dict()
    with pytest.raises(ValueError, match=message):
        Loop(**dict(IDLEST, **change)).session.load_state_dict(state)


def test_old_state_of_another_allocator_is_refused():
    state = old_format(Loop(**IDLEST).session.state_dict(), [])
    with pytest.raises(ValueError, match='a run with another pruner or allocator than'):
        Loop(**dict(IDLEST, allocator=dict(type='ThompsonAllocator'))).session.load_state_dict(state)


def test_state_of_a_later_release_is_refused():
    session = Loop(**IDLEST).session
    with pytest.raises(ValueError, match='has version 3, but this release knows 2'):
        session.load_state_dict(dict(session.state_dict(), version=3))


def test_state_does_not_grow():
    loop, sizes = Loop(**dict(IDLEST, reward_baseline='mean')), []
    for periods in (20, 180):
        loop.run(periods)
        file = io.BytesIO()
        torch.save(loop.session.state_dict(), file)
        sizes.append(len(file.getvalue()))
    assert loop.session.period == 200 and abs(sizes[1] - sizes[0]) < 100, sizes


@pytest.mark.parametrize('criterion', CRITERIA)
def test_close_leaves_the_prompts_as_they_were(criterion):
    loop = Loop(pruner=dict(type='IdlenessPruner', criterion=criterion), allocator=dict(type='PPOAllocator'))
    loop.session.close()
    assert loop.model.prompts.probe is None
    loop.session.begin_iteration()
    loss = loop.model(*loop.batch(), mode='loss')['loss']
    loss.backward()  # nobody measures it
    with pytest.raises(RuntimeError, match='no prompt has got a gradient'):
        loop.session.end_iteration(loss)
    loop.session.criterion.update(loss)
    idleness, _, iterations = loop.session.criterion.compute()
    assert iterations == 1 and idleness.count_nonzero() == 0


# Several processes, without MMEngine


@pytest.fixture(scope='module')
def ranks():
    """What both ranks of session_ranks.py have found."""
    folder, root = tempfile.mkdtemp(), Path(__file__).parents[2]
    environment = dict(os.environ, OMP_NUM_THREADS='1', CUDA_VISIBLE_DEVICES='',
                       PYTHONPATH=f'{root}{os.pathsep}{os.environ.get("PYTHONPATH", "")}')
    processes = [subprocess.Popen([sys.executable, session_ranks.__file__, folder, str(rank)], env=environment,
                                  stdout=subprocess.DEVNULL) for rank in range(2)]
    assert [process.wait(timeout=120) for process in processes] == [0, 0]
    return [json.loads(Path(folder, f'{rank}.json').read_text()) for rank in range(2)]


def test_ranks_agree_and_rank_0_tells(ranks):
    first, second = ranks
    assert first['owners'] == second['owners'] == first['average'] == second['average']
    assert first['tokens'] == second['tokens'], 'though each draws another row'
    assert [period is None for period in second['periods']] == [True] * 6
    assert sum(len(moves) for moves in first['periods']) == 6
    assert first['candidates'] == second['candidates'] and len(first['candidates']) == 2


def test_both_ranks_measure(ranks):
    assert ranks[0]['loss'] == pytest.approx(sum(rank['own_loss'] for rank in ranks) / 2)


def test_when_rank_0_fails_all_ranks_end_with_its_message(ranks):
    assert ranks[0]['error'] == 'ZeroDivisionError: no block, für keinen'
    assert ranks[1]['error'] == 'RuntimeError: rank 0 failed: ZeroDivisionError: no block, für keinen'
