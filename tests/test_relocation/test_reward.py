import math

import pytest
import torch

from mmprovpt.relocation import PeriodLoss, RewardBaseline

LOSSES = [8.0, 4.0, 2.0, 1.0, 0.5]


@pytest.mark.parametrize('tail,last', [(1.0, 5), (0.6, 3), (0.5, 2), (0.2, 1), (0.01, 1)])
def test_loss_is_the_mean_of_the_last_part(tail, last):
    loss = PeriodLoss(tail)
    for position, value in enumerate(LOSSES):
        loss.add(torch.tensor(value, requires_grad=True), position, 5)
    mean, count = loss.compute()
    assert (mean, count) == (pytest.approx(sum(LOSSES[-last:]) / last), last)
    loss.reset()
    assert math.isnan(loss.compute()[0]) and loss.compute()[1] == 0


def test_state_resumes():
    loss, other = PeriodLoss(), PeriodLoss()
    for position, value in enumerate([1.0, 3.0]):
        loss.add(value, position, 3)
    other.load_state_dict(loss.state_dict())
    other.add(5.0, 2, 3)
    assert loss.compute() == (2.0, 2) and other.compute() == (3.0, 3)


def test_a_loss_that_is_not_finite_makes_the_mean_so_until_the_next_period():
    loss = PeriodLoss()
    for position, value in enumerate([1.0, float('nan'), 3.0]):
        loss.add(value, position, 3)
    assert math.isnan(loss.compute()[0])
    loss.reset()
    loss.add(2.0, 0, 1)
    assert loss.compute() == (2.0, 1)


def test_no_baseline_is_the_reward_itself():
    baseline = RewardBaseline()
    assert [baseline.advantage(r) for r in LOSSES] == LOSSES and baseline.rewards == []


def test_mean_by_hand():
    mean = RewardBaseline('mean', window=3)
    assert [mean.advantage(r) for r in (8.0, 4.0, 3.0, 1.0, 0.0)] == [0, -4, -3, -4, pytest.approx(-8 / 3)]


def test_noise_that_a_baseline_adds():
    """A window of 10: a tenth of the variance."""
    rewards = torch.randn(20000, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    baseline = RewardBaseline('mean')
    credits = torch.tensor([baseline.advantage(r) for r in rewards.tolist()])[10:]
    assert float(credits.var()) == pytest.approx(1.1, rel=0.05)


def test_baseline_state_resumes():
    one, other = RewardBaseline('mean'), RewardBaseline('mean')
    for reward in LOSSES:
        one.advantage(reward)
    other.load_state_dict(one.state_dict())
    assert one.advantage(1.0) == other.advantage(1.0)


def test_wrong_arguments_raise():
    with pytest.raises(ValueError, match='loss_tail must be in .* is 0'):
        PeriodLoss(0)
    with pytest.raises(ValueError, match="None or 'mean', but is 'median'"):
        RewardBaseline('median')
    with pytest.raises(ValueError, match="no 'trend' any more.*: use 'mean'"):
        RewardBaseline('trend')
    with pytest.raises(ValueError, match='window must be at least 1'):
        RewardBaseline('mean', window=0)
