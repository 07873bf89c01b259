"""Which prompts each pruner may choose, and which it chooses; those without a block are left out."""
import pytest
import torch

from mmprovpt.prompts import StaticPrompts
from mmprovpt.relocation import CRITERIA, IdlenessPruner, RandomPruner, UniformAllocator
from mmprovpt.relocation.relocator import policy_state

SCORES = torch.tensor([-1.0, 0.2, 0.3, -5.0, 9.0])
BLOCKS = torch.tensor([0, 1, 2, 2, -1])


@pytest.mark.parametrize('pruner, eligible, choice', [
    (IdlenessPruner(), [0, 1, 2, 3], 2),
    (IdlenessPruner(verify_top=3), [0, 1, 2, 3], 2),
])
def test_eligible_and_choice(pruner, eligible, choice):
    found = pruner.eligible(BLOCKS)
    assert found.tolist() == eligible
    assert pruner.prune(SCORES, found) == choice


def test_random_pruner_takes_every_owned_prompt_equally_often():
    pruner = RandomPruner(seed=0)
    counts = torch.bincount(torch.tensor([pruner.prune(SCORES, pruner.eligible(BLOCKS)) for _ in range(2000)]))
    assert counts.shape == (4, ), 'never the spare one'
    assert (counts / 2000 - 0.25).abs().max() < 0.04  # 4 standard deviations
    assert pruner.prune(SCORES, torch.zeros(0, dtype=torch.int64)) is None


def test_random_prompts_go_to_any_block_though_the_allocator_has_the_same_seed():
    pruner, allocator = RandomPruner(seed=3), UniformAllocator(4, seed=3)
    pairs = {(pruner.prune(torch.zeros(8)), allocator.act(torch.zeros(12))) for _ in range(800)}
    assert len(pairs) == 8 * 4


def test_what_helps_stays():
    assert IdlenessPruner().prune(-SCORES.abs()) is None


@pytest.mark.parametrize('top, candidates', [(0, []), (3, [2, 1, 0]), (9, [2, 1, 0, 3])])
def test_candidates_are_the_idlest_that_a_block_owns(top, candidates):
    assert IdlenessPruner(verify_top=top).candidates(SCORES, BLOCKS).tolist() == candidates


def test_state_leaves_out_what_no_block_owns():
    with_spare = policy_state(SCORES, BLOCKS, -1, num_blocks=3)
    without = policy_state(SCORES[:4], BLOCKS[:4], None, num_blocks=3)
    assert torch.equal(with_spare, without)


@pytest.mark.parametrize('criterion, interval', [('taylor', 1), ('taylor_norm', 1), ('gate', 4), ('gate_fisher', 4)])
def test_gates_are_scored_less_often(criterion, interval):
    prompts = StaticPrompts(2, patch_fan_in=12, widths=(4, 4))
    assert CRITERIA[criterion](prompts, IdlenessPruner(criterion).score_interval).score_interval == interval
    assert CRITERIA[criterion](prompts, IdlenessPruner(criterion, score_interval=2).score_interval).score_interval == 2


def test_bad_score_interval():
    with pytest.raises(ValueError, match='score_interval must be at least 1, but is 0'):
        IdlenessPruner('gate', score_interval=0)
