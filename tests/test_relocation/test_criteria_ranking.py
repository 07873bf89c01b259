import copy
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from mmprovpt.relocation import TaylorIdleness


class Toy(nn.Module):
    """A loss that reads every prompt, not linearly."""

    def __init__(self, num_prompts=5, width=4):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.tokens = nn.Parameter(torch.randn(num_prompts, width, generator=generator))
        self.weight = torch.randn(width, width, generator=generator)

    def forward(self, x):
        return ((self.tokens @ self.weight).tanh() @ x).square().mean()


@pytest.fixture
def toy():
    return Toy()


def inputs(count):
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(4, generator=generator) for _ in range(count)]


def slow_score(toy, x):
    """⟨∂L/∂p_k, p_k⟩, number by number."""
    grad, = torch.autograd.grad(toy(x), toy.tokens)
    tokens, (rows, width) = toy.tokens.detach(), grad.shape
    return [sum(float(grad[k, m]) * float(tokens[k, m]) for m in range(width))
            for k in range(rows)]


def train_step(toy, idleness, x, scale=1.0):
    idleness.begin(scale)
    loss = toy(x)
    (loss * scale).backward()
    idleness.update(loss)
    return float(loss.detach())


def test_is_the_mean_over_iterations_while_prompts_train(toy):
    idleness = TaylorIdleness(toy)
    optimizer = torch.optim.SGD(toy.parameters(), lr=0.1)
    scores, losses = [], []
    for x in inputs(3):
        scores.append(slow_score(toy, x))
        losses.append(train_step(toy, idleness, x))
        optimizer.step()
        optimizer.zero_grad()  # the score must already have been read
    mean, loss, count = idleness.compute()
    torch.testing.assert_close(mean, torch.tensor(scores).mean(0))
    assert loss == pytest.approx(sum(losses) / 3)
    assert count == 3 and idleness.num_dropped == 0


def test_approximates_true_removal_of_a_small_prompt(toy):
    toy.weight = toy.weight.double()
    toy.tokens = nn.Parameter(toy.tokens.detach().double())
    with torch.no_grad():
        toy.tokens[0] *= 1e-3
    idleness = TaylorIdleness(toy)
    x = inputs(1)[0].double()

    def loss_of_all():  # with a linear term: the toy's loss is flat where a prompt is 0
        return toy(x) + toy.tokens[0].sum()

    idleness.begin()
    loss_of_all().backward()
    before = loss_of_all()
    idleness.update(before)
    with torch.no_grad():
        toy.tokens[0] = 0
    assert idleness.compute()[0][0] == pytest.approx(float(before - loss_of_all()), rel=0.01)


@pytest.mark.parametrize('scale', [0.25, 65536.0, torch.tensor(0.5), torch.tensor([1024.0])])
def test_undoes_the_scale(toy, scale):
    idleness = TaylorIdleness(toy)
    x, = inputs(1)
    train_step(toy, idleness, x, scale)
    torch.testing.assert_close(idleness.compute()[0], torch.tensor(slow_score(toy, x)))


def test_reads_each_iteration_of_an_accumulated_gradient_once(toy):
    idleness = TaylorIdleness(toy)
    scores = [slow_score(toy, x) for x in inputs(4)]
    for x in inputs(4):
        train_step(toy, idleness, x, scale=0.25)  # gradients stay and add up in tokens.grad
    torch.testing.assert_close(idleness.compute()[0], torch.tensor(scores).mean(0))


def test_adds_the_parts_of_several_backward_calls(toy):
    idleness = TaylorIdleness(toy)
    first, second = inputs(2)
    expected = torch.tensor(slow_score(toy, first)) + torch.tensor(slow_score(toy, second))
    idleness.begin()
    for x in (first, second):
        toy(x).backward()
    idleness.update(1.0)
    torch.testing.assert_close(idleness.compute()[0], expected)


def test_reentrant_checkpointing_gives_the_same_score(toy):
    idleness = TaylorIdleness(toy)
    x, y = inputs(2)
    expected = torch.tensor(slow_score(toy, x)) + torch.tensor(slow_score(toy, y))
    idleness.begin()
    # Two checkpointed segments, each of which runs its own backward and so fires the hook.
    loss = sum(checkpoint(toy, part.clone().requires_grad_(), use_reentrant=True)
               for part in (x, y))
    loss.backward()
    idleness.update(loss)
    torch.testing.assert_close(idleness.compute()[0], expected)


def test_ignores_backward_passes_outside_of_an_iteration(toy):
    idleness = TaylorIdleness(toy)
    first, second = inputs(2)
    toy(first).backward()
    train_step(toy, idleness, second)
    toy(first).backward()
    torch.testing.assert_close(idleness.compute()[0], torch.tensor(slow_score(toy, second)))


def test_drops_an_iteration_whose_gradients_are_not_finite_as_a_whole(toy):
    idleness = TaylorIdleness(toy)
    good, bad = inputs(2)
    train_step(toy, idleness, good)
    idleness.begin()
    loss = toy(bad)
    toy.tokens[1, 1].mul(float('inf')).backward()
    loss.backward()
    idleness.update(loss)
    mean, mean_loss, count = idleness.compute()
    torch.testing.assert_close(mean, torch.tensor(slow_score(toy, good)))
    assert mean_loss == pytest.approx(float(toy(good)))
    assert (count, idleness.num_dropped) == (1, 1)


@pytest.mark.parametrize('loss', [float('nan'), float('inf')])
def test_a_loss_that_is_not_finite_voids_the_period(toy, loss):
    idleness = TaylorIdleness(toy)
    good, bad = inputs(2)
    train_step(toy, idleness, good)
    idleness.begin()
    toy(bad).backward()
    idleness.update(loss)
    mean, mean_loss, count = idleness.compute()
    assert mean.isnan().all() and mean_loss != mean_loss and (count, idleness.num_dropped) == (1, 1)
    idleness.reset()
    train_step(toy, idleness, good)
    torch.testing.assert_close(idleness.compute()[0], torch.tensor(slow_score(toy, good)))


def test_without_an_iteration_there_is_no_mean(toy):
    mean, loss, count = TaylorIdleness(toy).compute()
    assert mean.isnan().all() and loss != loss and count == 0


def test_sums_of_processes_add_up(toy):
    x, y, z = inputs(3)
    one, other, both = (TaylorIdleness(toy) for _ in range(3))
    for idleness, batches in ((one, [x]), (other, [y, z]), (both, [x, y, z])):
        for batch in batches:
            train_step(toy, idleness, batch)
    one.sums += other.sums
    torch.testing.assert_close(one.compute()[0], both.compute()[0])
    assert one.compute()[1:] == pytest.approx(both.compute()[1:])


def test_score_is_float32_for_low_precision_prompts():
    tokens = nn.Parameter(torch.full((1, 3000), 0.01, dtype=torch.bfloat16))
    idleness = TaylorIdleness(SimpleNamespace(tokens=tokens))
    idleness.begin()
    (tokens * 1.0).sum().backward()
    idleness.update(0.0)
    assert idleness.sums.dtype == torch.float32
    expected = 3000 * float(torch.tensor(0.01, dtype=torch.bfloat16))
    assert float(idleness.compute()[0]) == pytest.approx(expected, rel=1e-5)


def test_score_interval(toy):
    """Of five iterations the first, third and fifth are scored, in each period anew; every loss counts."""
    idleness = TaylorIdleness(toy, score_interval=2)
    for _ in range(2):
        idleness.reset()
        losses = [train_step(toy, idleness, x) for x in inputs(5)]
        scores, loss, count = idleness.compute()
        torch.testing.assert_close(scores, torch.tensor([slow_score(toy, x) for x in inputs(5)[::2]]).mean(0))
        assert loss == pytest.approx(sum(losses) / 5) and count == 5


@pytest.mark.parametrize('score_interval', [1, 3])
def test_state_continues_a_period(toy, tmp_path, score_interval):
    whole, first, second = (TaylorIdleness(toy, score_interval) for _ in range(3))
    batches = inputs(4)
    for x in batches:
        train_step(toy, whole, x)
    for x in batches[:2]:
        train_step(toy, first, x)
    torch.save(first.state_dict(), tmp_path / 'state.pth')
    second.load_state_dict(torch.load(tmp_path / 'state.pth', weights_only=True))
    for x in batches[2:]:
        train_step(toy, second, x)
    assert torch.equal(whole.sums, second.sums)


def test_state_of_other_prompts_raises(toy):
    state = TaylorIdleness(SimpleNamespace(tokens=nn.Parameter(torch.zeros(7, 4)))).state_dict()
    with pytest.raises(ValueError, match='7 prompts.*has 5'):
        TaylorIdleness(toy).load_state_dict(state)


def test_update_without_begin_raises(toy):
    with pytest.raises(RuntimeError, match='without begin'):
        TaylorIdleness(toy).update(0.0)


def test_copies_of_the_model_do_not_feed_it(toy):
    idleness = TaylorIdleness(toy)
    twin = copy.deepcopy(toy)
    x, = inputs(1)
    idleness.begin()
    twin(x).backward()
    idleness.update(0.0)
    assert not idleness.compute()[0].any()


def test_closed_it_hears_nothing(toy):
    idleness = TaylorIdleness(toy)
    idleness.close()
    train_step(toy, idleness, inputs(1)[0])
    assert not idleness.compute()[0].any()
