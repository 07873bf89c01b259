"""What Table 3 and App. C of PRO-VPT compare relocation with: who leaves and where to, beside those of the package.

A config has these classes after ``custom_imports = dict(imports=['benchmarks.table3.ablations'])``, with the root of
the repository on PYTHONPATH. They are added as classes of your own would be.
"""
from collections.abc import Sequence

import torch
from torch import Tensor

from mmprovpt.errors import ConfigError
from mmprovpt.prompts import FORMS, StaticPrompts
from mmprovpt.relocation import ALLOCATORS, PRUNERS, Allocator, IdlenessPruner, Move, PPOAllocator, Relocator
from mmprovpt.relocation.allocator import Signals


@PRUNERS.register
class ShrinkingPruner(IdlenessPruner):
    """Prune the idlest prompt, whatever its sign, until a share of all is left (Table 3, A and B).

    With :class:`RetireAllocator` it searches a sub-distribution of the initial one, as pruning-based methods do.

    Args:
        keep (float): Share of the prompts that stay, in [0, 1].
        **kwargs: Of ``IdlenessPruner``.

    Raises:
        ConfigError: The share is out of its range.
    """

    def __init__(self, keep: float, **kwargs) -> None:
        super().__init__(**kwargs)
        if not 0 <= keep <= 1:
            raise ConfigError(f'keep must be in [0, 1], but is {keep}')
        self.keep = keep

    def eligible(self, block_index: Tensor) -> Tensor:
        """Those that a block owns, while there are more than stay; see the base class."""
        owned = super().eligible(block_index)
        return owned if len(owned) > round(self.keep * len(block_index)) else owned[:0]

    def prune(self, idleness: Tensor, eligible: Tensor | None = None) -> int | None:
        """The idlest; None where none is eligible."""
        return self.pick(idleness, eligible)


@PRUNERS.register
class SparePruner(IdlenessPruner):
    """Take no prompt away, but a new one out of the spare ones (App. C); when none is left, nothing moves any more.

    The model has :class:`SparePrompts`. Idleness is measured for the policy's state.

    Args:
        **kwargs: Of ``IdlenessPruner``.
    """

    def eligible(self, block_index: Tensor) -> Tensor:
        """Those that no block owns; see the base class."""
        return (block_index < 0).nonzero().flatten()

    def prune(self, idleness: Tensor, eligible: Tensor | None = None) -> int | None:
        """The first, for they are alike; None where none is eligible."""
        return self.pick(idleness, eligible)


@ALLOCATORS.register
class RetireAllocator(Allocator):
    """No block gets the pruned prompt: it is taken out (Table 3, A and B).

    Args:
        num_blocks (int): Number of blocks L.
    """

    def act(self, state: Tensor, signals: Signals = None) -> int:
        """-1, which is no block."""
        return -1


class JointRelocator(Relocator):
    """Asks the allocator for both blocks of a move, and the pruner only for a prompt of the first.

    Pruning is part of the action then, so I_k is left in the reward.
    """

    def __init__(self, *args, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        if self.relocate_per_period > 1:
            raise ConfigError(f'{type(self.allocator).__name__} moves one prompt per period, but '
                              f'relocate_per_period is {self.relocate_per_period}')

    def prune(self, scores: Tensor, blocks: Tensor, free: Tensor) -> int | None:
        """None: no prompt has been chosen when the allocator is asked."""
        return None

    def allocate(self, prompt: int | None, state: Tensor, scores: Tensor, blocks: Tensor,
                 signals: Signals) -> Move | None:
        """The move that an action ``source * L + target`` means; see the base class."""
        source, target = divmod(self.allocator.act(state, signals), self.num_blocks)
        prompt = self.pruner.pick(scores, (blocks == source).nonzero().flatten())
        return Move(prompt, source, target, float(scores[prompt]))

    def penalty(self, moves: Sequence[Move]) -> float:
        """0."""
        return 0.


@ALLOCATORS.register
class JointPPOAllocator(PPOAllocator):
    """Naive RL over all L² moves (Table 3, C): one action is a pair of blocks, from and to.

    The state has no pruned prompt, so the networks are 2L-64-64-{L², 1}. Blocks without prompts cannot lose one; their
    actions are masked. Which prompt of the first block moves is the pruner's choice: any with ``RandomPruner``, the
    idlest, whatever its sign, with ``IdlenessPruner``.

    Args:
        **kwargs: Of ``PPOAllocator``.
    """

    relocator_type = JointRelocator

    def sizes(self, num_blocks: int) -> tuple[int, int]:
        """2L and L²."""
        return 2 * num_blocks, num_blocks**2

    def features(self, states: Tensor) -> Tensor:
        """(..., 2L), idleness and distribution."""
        return states[..., :2 * self.num_blocks]

    def logits(self, states: Tensor) -> Tensor:
        """(..., L²) logits in states (..., 3L); -1e9 where the first block is empty."""
        empty = states[..., self.num_blocks:2 * self.num_blocks] <= -1  # a surplus of -1 is a count of 0
        logits = super().logits(states).unflatten(-1, (self.num_blocks, self.num_blocks))
        # Not -inf: the entropy would be 0 * inf.
        return logits.masked_fill(empty[..., None], -1e9).flatten(-2)


@FORMS.register
class SparePrompts(StaticPrompts):
    """VPT's prompts and further ones that no block owns at the start (App. C).

    Args:
        num_tokens: See ``StaticPrompts``.
        num_spare: How many no block owns.
        **kwargs: Of ``StaticPrompts``.

    Raises:
        ConfigError: ``num_spare`` is no number of prompts.
    """

    removed = {}  # num_spare is an option here

    def __init__(self, num_tokens, num_spare: int, **kwargs) -> None:
        if type(num_spare) is not int or num_spare < 0:
            raise ConfigError(f'num_spare={num_spare!r}, but it must be an int >= 0')
        self.num_spare = num_spare
        super().__init__(num_tokens, **kwargs)

    def initial_owners(self) -> Tensor:
        """(N,) int64, -1 for those at the end; they are as long as in the last block, the widest."""
        return torch.cat([super().initial_owners(), torch.full((self.num_spare, ), -1)])

    @torch.no_grad()
    def relocate(self, prompt: int, block: int) -> bool:
        """As of ``StaticPrompts``; a spare prompt is cut to its block's width, and its row counts as rewritten."""
        if block < 0 or int(self.block_index[prompt]) >= 0:
            return super().relocate(prompt, block)
        self.tokens[prompt, self.widths[block]:] = 0
        self.block_index[prompt] = block
        self.owners_changed()
        return True
