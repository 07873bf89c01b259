"""Which prompts each pruner may choose, and which it chooses; spare and retired prompts included."""
import pytest
import torch

from mmprovpt.prompts import StaticPrompts
from mmprovpt.relocation import (
    CRITERIA,
    IdlenessPruner,
    PPOAllocator,
    RandomPruner,
    Relocator,
    RetireAllocator,
    ShrinkingPruner,
    SparePruner,
    UniformAllocator,
)
from mmprovpt.relocation.relocator import policy_state

SCORES = torch.tensor([-1.0, 0.2, 0.3, -5.0, 9.0])
BLOCKS = torch.tensor([0, 1, 2, 2, -1])


@pytest.mark.parametrize('pruner, candidates, choice', [
    (IdlenessPruner(), [0, 1, 2, 3], 2),
    (ShrinkingPruner(keep=0.6), [0, 1, 2, 3], 2),
    (ShrinkingPruner(keep=0.8), [], None),
    (SparePruner(), [4], 4),
])
def test_candidates_and_choice(pruner, candidates, choice):
    found = pruner.candidates(BLOCKS)
    assert found.tolist() == candidates
    assert pruner.prune(SCORES, found) == choice


def test_random_pruner_takes_every_owned_prompt_equally_often():
    pruner = RandomPruner(seed=0)
    counts = torch.bincount(torch.tensor([pruner.prune(SCORES, pruner.candidates(BLOCKS)) for _ in range(2000)]))
    assert counts.shape == (4, ), 'never the spare one'
    assert (counts / 2000 - 0.25).abs().max() < 0.04  # 4 standard deviations
    assert pruner.prune(SCORES, torch.zeros(0, dtype=torch.int64)) is None


def test_only_the_shrinking_pruner_takes_what_helps():
    assert IdlenessPruner().prune(-SCORES.abs()) is None
    assert ShrinkingPruner(keep=0).prune(-SCORES.abs()) == 1


def play(relocator, blocks, periods, scores=SCORES):
    """Blocks after so many periods of equal loss, and all moves."""
    blocks, moves = blocks.clone(), []
    for _ in range(periods):
        moves += relocator.step(1.0, scores, blocks)
        for move in moves:
            blocks[move.prompt] = move.target
    return blocks.tolist(), moves


def test_pruning_stops_at_its_share_also_within_a_period():
    one = Relocator(3, ShrinkingPruner(keep=0.4), RetireAllocator(3))
    blocks, moves = play(one, BLOCKS, 9)
    assert blocks == [0, -1, -1, 2, -1] or blocks == [-1, -1, -1, 2, -1]
    assert [(m.prompt, m.source, m.target) for m in moves] == [(2, 2, -1), (1, 1, -1)]
    three = Relocator(3, ShrinkingPruner(keep=0.4), RetireAllocator(3), relocate_per_period=3)
    assert [(m.prompt, m.target) for m in three.step(1.0, SCORES, BLOCKS)] == [(2, -1), (1, -1)]


def test_pruning_keeps_to_what_was_verified():
    subject = Relocator(3, ShrinkingPruner(keep=0, verify_top=2), RetireAllocator(3))
    assert subject.step(1.0, SCORES, BLOCKS, verified={0: -0.5, 3: -0.25})[0][:2] == (3, 2)


def test_adding_gives_spare_prompts_to_blocks_and_rewards_without_idleness():
    subject = Relocator(3, SparePruner(), UniformAllocator(3, seed=0))
    first, = subject.step(3.0, torch.zeros(5), BLOCKS)
    assert (first.prompt, first.source) == (4, -1) and first.target in range(3)
    after = BLOCKS.clone()
    after[4] = first.target
    assert subject.step(2.5, torch.zeros(5), after) == []
    assert subject.last_reward == 0.5, 'what the new prompt brought'


def test_state_leaves_out_what_no_block_owns():
    with_spare = policy_state(SCORES, BLOCKS, -1, num_blocks=3)
    without = policy_state(SCORES[:4], BLOCKS[:4], None, num_blocks=3)
    assert torch.equal(with_spare, without)


def test_ppo_learns_from_additions():
    """A bandit of three blocks in which the second is worth 1."""
    subject = Relocator(3, SparePruner(), PPOAllocator(3, seed=0, lr_actor=1e-2))
    blocks, loss, targets = torch.full((150, ), -1), 0.0, []
    for _ in range(150):
        move, = subject.step(loss, torch.zeros(150), blocks)
        blocks[move.prompt] = move.target
        targets.append(move.target)
        loss -= move.target == 1
    assert targets[-50:].count(1) > 40, targets


@pytest.mark.parametrize('keep', [-0.1, 1.1])
def test_share_out_of_range(keep):
    with pytest.raises(ValueError, match=r'keep must be in \[0, 1\]'):
        ShrinkingPruner(keep=keep)


@pytest.mark.parametrize('criterion, interval', [('taylor', 1), ('taylor_norm', 1), ('gate', 4), ('gate_fisher', 4)])
def test_gates_are_scored_less_often(criterion, interval):
    pool = StaticPrompts(2, patch_fan_in=12, widths=(4, 4))
    assert CRITERIA[criterion](pool, IdlenessPruner(criterion).score_interval).score_interval == interval
    assert CRITERIA[criterion](pool, IdlenessPruner(criterion, score_interval=2).score_interval).score_interval == 2


def test_bad_score_interval():
    with pytest.raises(ValueError, match='score_interval must be at least 1, but is 0'):
        IdlenessPruner('gate', score_interval=0)
