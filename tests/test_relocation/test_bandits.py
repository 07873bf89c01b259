import math

import pytest
import torch

from mmprovpt.relocation import ALLOCATORS, NeedAllocator, RandomPruner, ThompsonAllocator, UniformAllocator
from mmprovpt.relocation.allocator import need_logits

STATE = torch.zeros(12)
NEED = dict(need=torch.tensor([1.0, 8.0, float('nan'), 1.0]))


def shares(allocator, signals=None, draws=4000):
    picks = torch.tensor([allocator.act(STATE, signals) for _ in range(draws)])
    return torch.bincount(picks, minlength=4) / draws


def test_signal_by_hand():
    # The mean log of 1, 8 and 1 is log 2, and so the unknown block's.
    expected = torch.tensor([0.5, 4.0, 1.0, 0.5]).log()
    torch.testing.assert_close(need_logits(NEED, 4), expected)
    assert need_logits(dict(need=torch.full((4, ), float('nan'))), 4).tolist() == [0] * 4
    assert need_logits(dict(need=torch.zeros(4)), 4).tolist() == [0] * 4
    some = need_logits(dict(need=torch.tensor([0.0, 1.0])), 2)
    torch.testing.assert_close(some, math.log(1e3) * torch.tensor([-1.0, 1.0]))


@pytest.mark.parametrize('signals,message', [
    (None, "needs the signal 'need', but those given are: none"),
    (dict(gain=torch.ones(4)), 'those given are: gain'),
    (dict(need=torch.ones(3)), r'each of 4 blocks, but its shape is \(3,\)'),
    (dict(need=torch.tensor([1.0, -1, 1, 1])), 'must not be negative'),
])
def test_wrong_signals_are_named(signals, message):
    with pytest.raises(ValueError, match=message):
        NeedAllocator(4).act(STATE, signals)


def test_uniform_is_uniform():
    torch.testing.assert_close(shares(UniformAllocator(4)), torch.full((4, ), 0.25), atol=0.03, rtol=0)


@pytest.mark.parametrize('temperature', [1.0, 2.0])
def test_need_draws_by_need(temperature):
    weights = torch.tensor([0.5, 4.0, 1.0, 0.5])**(1 / temperature)
    torch.testing.assert_close(shares(NeedAllocator(4, temperature), NEED), weights / weights.sum(), atol=0.03, rtol=0)


def test_need_at_temperature_0_is_the_argmax():
    assert shares(NeedAllocator(4, 0), NEED, 10).tolist() == [0, 1, 0, 0]


def play(allocator, rewards):
    """Choices, each rewarded by the next number."""
    picks = []
    for reward in rewards:
        picks.append(allocator.act(STATE, NEED))
        allocator.observe(reward, STATE, NEED)
    return picks


def test_posterior_of_independent_arms_by_hand():
    allocator = ThompsonAllocator(4, prior_scale=0.5, seed=1)
    rewards = [3.0, 1.0, 4.0, 1.0, 5.0, 9.0, 2.0, 6.0]
    picks = play(allocator, rewards)
    means, factor, sigma = allocator.posterior()
    mean = sum(rewards) / 8
    assert sigma == pytest.approx(math.sqrt(sum((r - mean)**2 for r in rewards) / 8))
    for arm in range(4):
        own = [r - mean for r, pick in zip(rewards, picks) if pick == arm]
        precision = len(own) + 4  # 1 / 0.5²
        assert float(means[arm]) == pytest.approx(mean + sum(own) / precision)
        assert float(factor[arm, arm]) == pytest.approx(math.sqrt(precision))


def test_regression_finds_who_of_several_earned_the_reward():
    """Two prompts per period; the reward is the sum of their blocks' values, without noise."""
    values = [0.0, 0.1, 0.2, 0.7]
    allocator = ThompsonAllocator(4, prior_scale=100, seed=0)
    for _ in range(40):
        allocator.observe(sum(values[allocator.act(STATE)] for _ in range(2)), STATE)
    means, _, _ = allocator.posterior()
    assert means.tolist() == pytest.approx(values, abs=1e-2)


def test_decay_forgets():
    allocator = ThompsonAllocator(4, decay=0.5)
    play(allocator, [1.0, 2.0, 3.0])
    assert float(allocator.moments[0]) == 1.75 and float(allocator.products.sum()) == 0.25 + 1 + 3


def test_equal_rewards_leave_thompson_uniform():
    allocator = ThompsonAllocator(4)
    play(allocator, [0.1] * 400)
    assert allocator.posterior()[2] == 1.0
    picks = torch.bincount(torch.tensor(play(allocator, [0.1] * 400)), minlength=4)
    assert picks.min() > 60


def test_thompson_has_no_unit():
    rewards = torch.randn(30, generator=torch.Generator().manual_seed(0)).tolist()
    one, other = (play(ThompsonAllocator(4), [scale * r for r in rewards]) for scale in (1, 1024))
    assert one == other


ALL = [dict(type='UniformAllocator'), dict(type='NeedAllocator'), dict(type='ThompsonAllocator', decay=0.9),
       dict(type='PPOAllocator', horizon=3)]


@pytest.mark.parametrize('config', ALL, ids=lambda config: config['type'])
def test_state_gives_identical_continuation(config, tmp_path):
    """With a decision that waits for its reward."""
    rewards = torch.randn(40, generator=torch.Generator().manual_seed(0)).tolist()
    original, restored = (ALLOCATORS.build(config, num_blocks=4, seed=seed) for seed in (1, 2))
    play(original, rewards[:7])
    original.act(STATE, NEED)
    torch.save(original.state_dict(), tmp_path / 'state.pth')
    restored.load_state_dict(torch.load(tmp_path / 'state.pth', weights_only=True))
    for allocator in (original, restored):
        allocator.observe(0.5, STATE, NEED)
    before = torch.get_rng_state()
    assert play(original, rewards[7:]) == play(restored, rewards[7:])
    assert torch.equal(before, torch.get_rng_state())
    with pytest.raises(ValueError, match='trained for 4 blocks, but the model has 5'):
        ALLOCATORS.build(config, num_blocks=5).load_state_dict(original.state_dict())


def test_wrong_arguments_raise():
    for config, message in ((dict(type='UniformAllocator', num_blocks=0), 'num_blocks must be at least 1'),
                            (dict(type='NeedAllocator', temperature=-1), 'temperature must be in'),
                            (dict(type='ThompsonAllocator', decay=0), 'decay must be in'),
                            (dict(type='ThompsonAllocator', prior_scale=0), 'prior_scale must be in'),
                            (dict(type='PPOAllocator', extra_state=('need', )), 'no extra_state any more')):
        with pytest.raises(ValueError, match=message):
            ALLOCATORS.build(config, **dict(num_blocks=4) if 'num_blocks' not in config else {})
    with pytest.raises(RuntimeError, match='without act'):
        ThompsonAllocator(4).observe(0.0, STATE)


def test_random_pruner_draws_from_what_is_eligible_and_resumes():
    pruner = RandomPruner(seed=4)
    scores = torch.full((6, ), -1.0)  # none does harm
    picks = torch.tensor([pruner.prune(scores, torch.tensor([1, 3, 4])) for _ in range(3000)])
    torch.testing.assert_close(torch.bincount(picks, minlength=6) / 3000, torch.tensor([0, 1, 0, 1, 1, 0]) / 3,
                               atol=0.03, rtol=0)
    assert {pruner.prune(scores) for _ in range(100)} == set(range(6))
    assert pruner.prune(scores, torch.tensor([], dtype=torch.int64)) is None
    other = RandomPruner()
    other.load_state_dict(pruner.state_dict())
    assert [pruner.prune(scores) for _ in range(9)] == [other.prune(scores) for _ in range(9)]
