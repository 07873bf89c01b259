"""Who uses the gain of a prompt where it is not yet; its values are tested in test_criteria.py."""
import math

import torch

from mmprovpt.relocation import IdlenessPruner, PPOAllocator, Relocator, VirtualAllocator
from mmprovpt.relocation.allocator import block_signal

STATE = torch.zeros(12)


def test_signal_is_standardised_and_unknown_is_neutral():
    gain = torch.tensor([-1.0, 3.0, float('nan'), 1.0])
    expected = torch.tensor([-2.0, 2.0, 0.0, 0.0]) / math.sqrt(8 / 3)
    torch.testing.assert_close(block_signal(dict(virtual=gain), 'virtual', 4), expected)
    assert block_signal(dict(virtual=torch.ones(4)), 'virtual', 4).tolist() == [0] * 4
    assert VirtualAllocator(4, temperature=0).act(STATE, dict(virtual=gain)) == 1
    allocator, draws = VirtualAllocator(4), torch.zeros(4)
    for _ in range(4000):
        draws[allocator.act(STATE, dict(virtual=gain))] += 1
    torch.testing.assert_close(draws / 4000, expected.softmax(0), rtol=0, atol=0.03)


def test_relocator_asks_for_the_pruned_prompt():
    asked, gains = [], torch.tensor([0.0, 0.0, 9.0])

    def signals(prompt):
        asked.append(prompt)
        return dict(virtual=gains if prompt is not None else torch.full((3, ), float('nan')))

    relocator = Relocator(3, IdlenessPruner(), VirtualAllocator(3, temperature=0))
    blocks = torch.tensor([0, 0, 1, 1])
    move, = relocator.step(2.0, torch.tensor([-1.0, 0.5, -1.0, 0.2]), blocks, signals)
    assert (move.prompt, move.target) == (1, 2)
    assert relocator.step(1.0, torch.full((4, ), -1.0), blocks, signals) == []
    assert asked == [1, None]
    ppo = PPOAllocator(3, prior='virtual', extra_state=('virtual', ))
    assert ppo.signals == ('virtual', ) and ppo.actor[0].in_features == 12
