
import pytest
import torch

from mmprovpt.errors import ConfigError
from mmprovpt.relocation import (
    ALLOCATORS,
    PRUNERS,
    Allocator,
    IdlenessPruner,
    Move,
    PPOAllocator,
    Relocator,
    UniformAllocator,
)
from mmprovpt.relocation.relocator import policy_state

BLOCKS = torch.tensor([0, 0, 1, 2, 2, 2])
NAN = float('nan')


class Scripted(Allocator):
    """Allocator that notes what it is told and answers what it is given."""

    def __init__(self, *actions):
        super().__init__(3)
        self.actions, self.states, self.observed = list(actions), [], []

    def act(self, state, signals=None):
        self.states.append(state)
        return self.actions.pop(0)

    def observe(self, reward, next_state, signals=None):
        self.observed.append((reward, next_state))


def relocator(*actions):
    return Relocator(3, IdlenessPruner(), Scripted(*actions))


def idle(prompt=None, score=0.5):
    """Idleness of six prompts of which at most one does harm."""
    scores = torch.full((6, ), -0.25)
    if prompt is not None:
        scores[prompt] = score
    return scores


def test_pruner_takes_the_idlest_that_harms():
    assert IdlenessPruner().prune(torch.tensor([-1.0, 0.2, 0.3, -5.0])) == 2
    assert IdlenessPruner().prune(torch.tensor([-1.0, 0.0, -0.3])) is None


def test_unknown_criterion_names_the_known():
    with pytest.raises(ValueError, match="'tailor'; known are taylor"):
        IdlenessPruner(criterion='tailor')


def test_state_by_hand():
    scores = torch.tensor([3e-5, 1e-5, -8e-5, 0.0, 2e-5, 1e-5])
    state = policy_state(scores, BLOCKS, 2, num_blocks=4)
    assert state.dtype == torch.float32
    expected = [2 / 8, -1, 1 / 8, 0,  # mean idleness per block, by the largest
                4 * 2 / 6 - 1, 4 * 1 / 6 - 1, 4 * 3 / 6 - 1, -1,  # surplus over 6 / 4 prompts
                0, 0, 1, 0]
    torch.testing.assert_close(state, torch.tensor(expected, dtype=torch.float32))
    assert policy_state(torch.zeros(6), BLOCKS, None, 4)[[0, 1, 2, 3, 8, 9, 10, 11]].eq(0).all()


def test_rewards_follow_equation_8():
    subject = relocator(2, 0, 1)
    assert subject.step(3.0, idle(0, 0.5), BLOCKS) == [Move(0, 0, 2, 0.5)]
    assert subject.last_reward is None
    blocks = torch.tensor([2, 0, 1, 2, 2, 2])
    assert subject.step(2.25, idle(3, 0.125), blocks) == [Move(3, 2, 0, 0.125)]
    assert subject.last_reward == 3.0 - 0.5 - 2.25
    assert subject.step(2.5, idle(1, 1.0), blocks)[0].target == 1
    assert subject.last_reward == 2.25 - 0.125 - 2.5
    assert subject.finish(1.0) == subject.last_reward == 2.5 - 1.0 - 1.0
    assert [reward for reward, _ in subject.allocator.observed] == [0.25, -0.375]
    # What follows a decision is the state of the next one.
    assert torch.equal(subject.allocator.observed[0][1], subject.allocator.states[1])


def test_without_an_idle_prompt_the_reward_is_given_all_the_same():
    subject = relocator(1, 2)
    subject.step(3.0, idle(0), BLOCKS)
    assert subject.step(2.0, idle(), BLOCKS) == []
    assert subject.last_reward == 0.5
    assert subject.allocator.observed[0][1][6:].eq(0).all()
    assert subject.step(1.5, idle(4), BLOCKS) == [Move(4, 2, 2, 0.5)]
    assert subject.last_reward is None  # the period before had opened without a relocation
    assert len(subject.allocator.observed) == 1


@pytest.mark.parametrize('loss,scores', [(NAN, idle(1)), (float('inf'), idle(1)),
                                         (1.0, idle(1, NAN)), (1.0, idle(1, float('inf')))])
def test_what_is_not_finite_never_reaches_the_policy(loss, scores):
    subject = relocator(1, 2)
    subject.step(3.0, idle(0), BLOCKS)
    assert subject.step(loss, scores, BLOCKS) == []
    assert subject.last_reward is None
    assert subject.step(2.0, idle(0), BLOCKS)[0].target == 2
    assert subject.last_reward is None
    assert subject.allocator.observed == []


@pytest.mark.parametrize('moved,loss', [(False, 1.0), (True, NAN)])
def test_last_reward_is_not_invented(moved, loss):
    subject = relocator(1)
    subject.step(3.0, idle(0 if moved else None), BLOCKS)
    assert subject.finish(loss) is None and subject.last_reward is None


def run(subject, periods, seed):
    generator = torch.Generator().manual_seed(seed)
    blocks, moves = BLOCKS.clone(), []
    for _ in range(periods):
        scores = torch.randn(6, generator=generator)
        chosen = subject.step(float(torch.rand((), generator=generator)), scores, blocks)
        for move in chosen:
            blocks[move.prompt] = move.target
        moves.append((chosen, subject.last_reward))
    return moves


def real(seed=0, num_blocks=3):
    return Relocator(num_blocks, IdlenessPruner(), PPOAllocator(num_blocks, seed=seed))


def test_state_dict_gives_the_same_relocations(tmp_path):
    original, restored = real(), real(seed=5)
    run(original, 6, seed=0)
    torch.save(original.state_dict(), tmp_path / 'state.pth')
    restored.load_state_dict(torch.load(tmp_path / 'state.pth', weights_only=True))
    assert run(original, 15, seed=1) == run(restored, 15, seed=1)
    assert original.finish(0.5) == restored.finish(0.5)


def test_state_of_other_blocks_raises():
    with pytest.raises(ValueError, match='about 4 blocks, but the model has 3'):
        real().load_state_dict(real(num_blocks=4).state_dict())


def test_build():
    allocator = ALLOCATORS.build(dict(type='PPOAllocator', clip=0.1), num_blocks=4, seed=7)
    assert (allocator.clip, allocator.num_blocks) == (0.1, 4)
    # What only some classes take is offered to all of them.
    assert PRUNERS.build(dict(type='IdlenessPruner'), seed=7).criterion == 'gate_fisher'


@pytest.mark.parametrize('config,message', [
    (dict(type='SACAllocator'), "type='SACAllocator' is unknown; known are .*PPOAllocator"),
    (dict(clip=0.1), r'must be a dict such as dict\(type='),
    (dict(type='PPOAllocator', clipp=0.1), 'no argument clipp; known are num_blocks,.* clip,'),
])
def test_wrong_config_names_the_known(config, message):
    with pytest.raises(ValueError, match=message):
        ALLOCATORS.build(config, num_blocks=4)


# What the authors' code does (docs/method/authors_code.md).


def test_standardised_state_by_hand():
    """Blocks with idleness 1 + 3, 2 and none; prompt 1 of block 0 leaves."""
    state = policy_state(torch.tensor([1., 3., 2.]), torch.tensor([0, 0, 1]), 0, 3, 'standardised')
    deviation = (((4 - 2)**2 + 0 + (0 - 2)**2) / 3)**0.5
    torch.testing.assert_close(state[:3], torch.tensor([2., 0., -2.]) / deviation)
    torch.testing.assert_close(state[3:6], torch.tensor([0.5, 0.5, 0.]))
    assert state[6:].tolist() == [1, 0, 0]


def test_reward_of_the_authors_by_hand():
    """Previous loss less the current one, both scaled, less the idlest of the period that ends."""
    seen = []

    class Recording(UniformAllocator):
        def observe(self, reward, next_state, signals=None):
            seen.append(reward)

    subject = Relocator(3, IdlenessPruner(), Recording(3), reward_idleness='largest', reward_loss_scale=0.25)
    blocks = torch.tensor([0, 1, 2])
    subject.step(2.0, torch.tensor([0.1, 0.5, 0.2]), blocks)
    subject.step(1.0, torch.tensor([0.1, 0.3, 0.4]), blocks)
    assert seen == [pytest.approx(0.25 * 2 - 0.25 * 1 - 0.4)]
    assert subject.finish(0.8, torch.tensor([0.6, 0.3, 0.4]), blocks) == pytest.approx(0.25 - 0.2 - 0.6)


@pytest.mark.parametrize('options, message', [
    (dict(reward_idleness='all'), "reward_idleness='all', but it must be one of moved, largest"),
    (dict(state='raw'), "state='raw', but it must be one of scaled, standardised"),
    (dict(reward_loss_scale=0.), 'reward_loss_scale must be more than 0, but is 0.0'),
])
def test_wrong_options(options, message):
    with pytest.raises(ConfigError, match=message):
        Relocator(3, IdlenessPruner(), UniformAllocator(3), **options)
