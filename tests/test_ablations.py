"""benchmarks/table3/ablations.py: who leaves and where to in Table 3, in the relocator and in real runs."""
import pytest
import torch
from test_hooks.toy_run import ToyModel, make_runner, read_rows, relocation_hook
from test_relocation.test_relocator import BLOCKS as SIX
from test_relocation.test_relocator import Scripted

from benchmarks.table3.ablations import (
    JointPPOAllocator,
    JointRelocator,
    RetireAllocator,
    ShrinkingPruner,
    SparePrompts,
    SparePruner,
)
from mmprovpt.relocation import (
    ALLOCATORS,
    IdlenessPruner,
    Move,
    PPOAllocator,
    RandomPruner,
    Relocator,
    UniformAllocator,
)
from mmprovpt.visualization import read_log

SCORES = torch.tensor([-1.0, 0.2, 0.3, -5.0, 9.0])
BLOCKS = torch.tensor([0, 1, 2, 2, -1])


@pytest.mark.parametrize('pruner, eligible, choice', [
    (ShrinkingPruner(keep=0.6), [0, 1, 2, 3], 2),
    (ShrinkingPruner(keep=0.8), [], None),
    (SparePruner(), [4], 4),
])
def test_eligible_and_choice(pruner, eligible, choice):
    found = pruner.eligible(BLOCKS)
    assert found.tolist() == eligible
    assert pruner.prune(SCORES, found) == choice


def test_shrinking_takes_what_helps():
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


def test_joint_action_says_from_and_to_and_leaves_the_prompt_to_the_pruner():
    subject = JointRelocator(3, IdlenessPruner(), Scripted(3 * 2 + 1, 0))
    scores = torch.tensor([1.0, 0.5, 0.0, -3.0, -1.0, -2.0])
    assert subject.step(3.0, scores, SIX) == [Move(4, 2, 1, -1.0)]  # the idlest, though it helps
    assert subject.allocator.states[0][6:].tolist() == [0, 0, 0]
    subject.step(2.0, scores, SIX)
    assert subject.last_reward == 1.0  # pruning is part of the action
    with pytest.raises(ValueError, match='JointPPOAllocator moves one prompt per period'):
        JointRelocator(3, IdlenessPruner(), JointPPOAllocator(3), relocate_per_period=2)


def test_joint_policy_never_takes_from_an_empty_block():
    allocator = JointPPOAllocator(12)
    assert allocator.actor[0].in_features == 24 and allocator.actor[-1].out_features == 144
    subject = JointRelocator(3, RandomPruner(), JointPPOAllocator(3, entropy_coef=0.5))
    blocks, generator = torch.tensor([0, 0, 1, 1]), torch.Generator().manual_seed(0)
    for _ in range(60):
        counts = torch.bincount(blocks, minlength=3)
        move, = subject.step(float(torch.rand((), generator=generator)), torch.zeros(4), blocks)
        assert counts[move.source] > 0 and blocks[move.prompt] == move.source
        blocks[move.prompt] = move.target
    assert all(torch.isfinite(p).all() for p in subject.allocator.actor.parameters())
    assert subject.allocator.diagnostics['entropy'] > 0


def train(folder, model=None, **hook):
    runner = make_runner(folder, hook=hook, epochs=6, model=model)
    runner.train()
    return runner, read_rows(folder)


def test_pruning_takes_prompts_out_until_its_share_is_left(tmp_path):
    runner, rows = train(tmp_path, pruner=dict(type='ShrinkingPruner', keep=0.5),
                         allocator=dict(type='RetireAllocator'))
    assert [row['to'] for row in rows] == [None] * 6
    assert [row['prompt'] is None for row in rows] == [False] * 3 + [True] * 3
    assert [sum(row['distribution']) for row in rows] == [5, 4, 3, 3, 3, 3]
    log = next(tmp_path.glob('*/*.log')).read_text()
    assert f'prompt {rows[0]["prompt"]} is taken out of block {rows[0]["from"]}' in log
    assert relocation_hook(runner).session.prompts.distribution.tolist() == rows[-1]['distribution']
    drawn = read_log(next(tmp_path.glob('*/relocations.jsonl')))
    assert drawn.counts.sum(0).tolist() == [6, 5, 4, 3, 3, 3, 3]


class SpareModel(ToyModel):
    """The toy with two prompts more."""

    def __init__(self):
        super().__init__(num_tokens=1)
        self.prompts = SparePrompts(1, num_spare=2, patch_fan_in=12, dropout=0., widths=(4, 4, 4))


def test_adding_gives_spare_prompts_to_blocks(tmp_path):
    runner, rows = train(tmp_path, model=SpareModel(), pruner=dict(type='SparePruner', criterion='taylor'),
                         allocator=dict(type='PPOAllocator'))
    assert [row['from'] for row in rows] == [None] * 6
    assert [sum(row['distribution']) for row in rows] == [4, 5, 5, 5, 5, 5]
    assert rows[1]['previous_reward'] == pytest.approx(rows[0]['loss'] - rows[1]['loss'], abs=1e-6)
    assert 'a new prompt, 3, comes to block' in next(tmp_path.glob('*/*.log')).read_text()
    trained = runner.optim_wrapper.optimizer.state[runner.model.prompts.tokens]['momentum_buffer']
    assert trained.abs().sum(1).min() > 0, 'all of them are trained in the end'
    assert read_log(next(tmp_path.glob('*/relocations.jsonl'))).counts.sum(0).tolist() == [3, 4, 5, 5, 5, 5, 5]


def test_joint_policy_in_a_run(tmp_path):
    _, rows = train(tmp_path, allocator=dict(type='JointPPOAllocator'), pruner=dict(type='RandomPruner'))
    assert sum(row['prompt'] is not None for row in rows) == 5
    for row, after in zip(rows, rows[1:]):
        assert after['previous_reward'] == pytest.approx(row['loss'] - after['loss'], abs=1e-6)


def test_a_spare_prompt_is_cut_to_its_block():
    prompts = SparePrompts(1, num_spare=2, patch_fan_in=12, widths=(4, 6), cross_stage='reinit')
    assert prompts.block_index.tolist() == [0, 1, -1, -1] and prompts.distribution.tolist() == [1, 1]
    assert prompts.tokens.requires_grad and prompts.tokens[2:].abs().min() > 0
    row = prompts.tokens[2].clone()
    assert prompts.relocate(2, 0)
    assert prompts.tokens[2].tolist() == [*row[:4].tolist(), 0, 0]
    assert torch.equal(prompts.rows(0), prompts.tokens[[0, 2], :4])
    with pytest.raises(ValueError, match='num_spare=-1'):
        SparePrompts(1, num_spare=-1, patch_fan_in=12, widths=(4, 6))


@pytest.mark.parametrize('pruner', [dict(type='SparePruner'), dict(type='ShrinkingPruner', keep=1.0)])
def test_a_pruner_without_a_choice_is_refused(tmp_path, pruner):
    runner = make_runner(tmp_path, hook=dict(pruner=pruner))
    with pytest.raises(ValueError, match='blocks own 6 prompts, and 0 belong to none'):
        runner.train()


def test_joint_policy_resumes(tmp_path):
    one, other = (ALLOCATORS.build(dict(type='JointPPOAllocator'), num_blocks=4, seed=seed) for seed in (1, 2))
    state = torch.zeros(12)
    one.act(state)
    torch.save(one.state_dict(), tmp_path / 'state.pth')
    other.load_state_dict(torch.load(tmp_path / 'state.pth', weights_only=True))
    for allocator in (one, other):
        allocator.observe(0.5, state)
    assert [one.act(state) for _ in range(9)] == [other.act(state) for _ in range(9)]
