"""Several prompts per period, and informed allocation, in the relocator."""
import pytest
import torch
from test_relocation.test_relocator import BLOCKS, Scripted, idle

from mmprovpt.relocation import (
    IdlenessPruner,
    Move,
    PPOAllocator,
    RandomPruner,
    Relocator,
    ThompsonAllocator,
    UniformAllocator,
)

SCORES = torch.tensor([0.5, -1.0, 0.25, 0.125, -1.0, -1.0])


def test_the_idlest_move_each_from_the_state_of_the_last_move():
    subject = Relocator(3, IdlenessPruner(), Scripted(2, 0), relocate_per_period=2)
    assert subject.step(3.0, SCORES, BLOCKS) == [Move(0, 0, 2, 0.5), Move(2, 1, 0, 0.25)]
    first, second = subject.allocator.states
    # Surplus (n_i L / N - 1) of the counts 2, 1, 3, and of 1, 1, 4 after the first move.
    assert first[3:6].tolist() == [0, -0.5, 0.5] and second[3:6].tolist() == [-0.5, -0.5, 1]
    assert first[6:].tolist() == [1, 0, 0] and second[6:].tolist() == [0, 1, 0]
    assert BLOCKS.tolist() == [0, 0, 1, 2, 2, 2]
    assert subject.step(1.0, idle(), BLOCKS) == []
    assert subject.last_reward == 3.0 - 0.75 - 1.0
    assert [reward for reward, _ in subject.allocator.observed] == [1.25]  # once, and whole


def test_fewer_move_when_fewer_are_idle_and_none_twice():
    subject = Relocator(3, IdlenessPruner(), UniformAllocator(3), relocate_per_period=5)
    assert [move.prompt for move in subject.step(3.0, SCORES, BLOCKS)] == [0, 2, 3]
    subject = Relocator(3, RandomPruner(), UniformAllocator(3), relocate_per_period=9)
    assert sorted(move.prompt for move in subject.step(3.0, SCORES, BLOCKS)) == list(range(6))


def test_decisions_of_one_period_share_its_reward():
    allocator = PPOAllocator(3, horizon=2, gamma=0.5, reward_decay=0.0)
    for reward, count in ((1.0, 2), (3.0, 1)):
        for _ in range(count):
            allocator.act(torch.zeros(9))
        if count == 2:
            allocator.observe(reward, torch.zeros(9))
    allocator.rewards.normalise = lambda reward: reward
    assert [(t.reward, t.period) for t in allocator.buffer] == [(1.0, 0), (1.0, 0)]
    allocator.update, updates = (lambda: updates.append(list(allocator.buffer))), []
    allocator.observe(3.0, torch.zeros(9))
    assert [t.period for t in updates[0]] == [0, 0, 1] and allocator.buffer == []
    allocator.buffer = updates[0]
    values = torch.tensor([0.5, 0.25, 1.0])
    returns, advantages = allocator.returns(values, torch.tensor(4.0))
    # 3 + 4 / 2, then 1 + 5 / 2 for both decisions.
    assert returns.tolist() == [3.5, 3.5, 5.0] and advantages.tolist() == [3.0, 3.25, 4.0]


@pytest.mark.parametrize('allocator', [PPOAllocator(3), ThompsonAllocator(3)])
def test_decisions_without_a_reward_are_forgotten(allocator):
    subject = Relocator(3, IdlenessPruner(), allocator, relocate_per_period=2)
    subject.step(3.0, SCORES, BLOCKS)
    assert subject.step(float('nan'), SCORES, BLOCKS) == []
    with pytest.raises(RuntimeError, match='without act'):
        allocator.observe(0.0, torch.zeros(9))


def test_allocator_gets_the_reward_less_its_baseline():
    subject = Relocator(3, IdlenessPruner(), Scripted(0, 0, 0, 0), reward_baseline='mean')
    losses = [8.0, 6.0, 5.0, 3.0]
    rewards = [subject.step(loss, idle(0), BLOCKS) and subject.last_reward for loss in losses]
    assert rewards == [None, 1.5, 0.5, 1.5]
    assert [reward for reward, _ in subject.allocator.observed] == [0, -1, 0.5]
    other = Relocator(3, IdlenessPruner(), UniformAllocator(3), reward_baseline='mean')
    state = dict(subject.state_dict(), allocator=other.allocator.state_dict())
    other.load_state_dict(state)
    assert other.baseline.rewards == [1.5, 0.5, 1.5]


def test_signals_reach_act_and_observe():
    seen = []

    class Asking(Scripted):
        signals = ('need', )

        def act(self, state, signals=None):
            seen.append(('act', signals['need'].tolist()))
            return super().act(state)

        def observe(self, reward, next_state, signals=None):
            seen.append(('observe', signals['need'].tolist()))

    subject = Relocator(3, IdlenessPruner(), Asking(0, 0))
    subject.step(3.0, SCORES, BLOCKS, dict(need=torch.tensor([1.0, 1.0, 8.0])))
    subject.step(2.0, SCORES, BLOCKS, dict(need=torch.tensor([8.0, 1.0, 1.0])))
    assert seen == [('act', [1, 1, 8]), ('observe', [8, 1, 1]), ('act', [8, 1, 1])]
