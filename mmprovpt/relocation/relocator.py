"""One period of prompt relocation: observe, reward, prune, allocate."""
import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from mmprovpt.errors import ConfigError
from mmprovpt.kinds import check_choice

from .allocator import Allocator, Signals
from .pruners import IdlenessPruner
from .reward import RewardBaseline

REWARD_IDLENESS = ('moved', 'largest')


class Move(NamedTuple):
    """Prompt ``prompt`` leaves block ``source`` for ``target`` (-1: no block), having had ``idleness``."""
    prompt: int
    source: int
    target: int
    idleness: float


def policy_state(idleness: Tensor, block_index: Tensor, source: int | None,
                 num_blocks: int, state: str = 'scaled') -> Tensor:
    """State of the allocation (PRO-VPT § 3.3): block-wise idleness, distribution, one-hot source.

    ``'scaled'`` is ours. The networks are tanh MLPs, so each part is brought to order 1: the mean idleness of each
    block's prompts (0 where it has none) is divided by the largest of them in absolute value, for
    raw Taylor scores are about 1e-5 and their scale drifts; the counts become L n_i / N - 1, a
    block's surplus over its uniform share, in [-1, L - 1].

    ``'standardised'`` is the authors' (docs/method/authors_code.md): the sum of each block's idleness, less its mean
    over blocks and divided by its deviation; and the counts without the pruned prompt, divided by their sum.

    Args:
        idleness (Tensor): Idleness of every prompt, (N,) float.
        block_index (Tensor): Block of every prompt, (N,) int64; -1 for one that no block owns.
        source (int, optional): Block of the pruned prompt; None or -1 gives zeros instead of a one-hot.
        num_blocks (int): Number of blocks L.
        state (str): A key of ``STATES``.

    Returns:
        Tensor: (3L,) float32 on the CPU.
    """
    owned = block_index >= 0
    counts = torch.bincount(block_index[owned], minlength=num_blocks).float()
    sums = torch.zeros(num_blocks).index_add_(0, block_index[owned], idleness[owned].float())
    one_hot = torch.zeros(num_blocks)
    if source is not None and source >= 0:
        one_hot[source] = 1
    return torch.cat([*STATES[state](sums, counts, one_hot), one_hot])


def _scaled(sums: Tensor, counts: Tensor, leaving: Tensor) -> tuple[Tensor, Tensor]:
    means = sums / counts.clamp(min=1)
    largest = means.abs().max()
    surplus = counts * (len(counts) / counts.sum().clamp(min=1)) - 1
    return means / largest if largest > 0 else means, surplus


def _standardised(sums: Tensor, counts: Tensor, leaving: Tensor) -> tuple[Tensor, Tensor]:
    staying = counts - leaving
    centred = sums - sums.mean()
    deviation = centred.square().mean().sqrt()
    return centred / deviation if deviation > 0 else centred, staying / staying.sum().clamp(min=1)


STATES = dict(scaled=_scaled, standardised=_standardised)


class Relocator:
    r"""Alternates pruning and allocation between periods of tuning (PRO-VPT § 3.3).

    A *period* is the training between two calls of ``step``. The relocations that open a period are
    rewarded when it ends: :math:`r = \mathcal L_{before} - \sum I_k - \mathcal L_{after}` (Eq. 8),
    with the training losses of the periods before and after them, summed over the r prompts that
    moved. It sees no model: whoever calls it carries out the moves.

    * Prompts of one period are chosen one after the other, each from the state that the moves
      before it lead to; their idleness is the one measured before. None moves twice.
    * The period's reward is theirs together, and is given whole to each; how an allocator credits
      its decisions says its class.
    * A period that opened without a relocation gives no reward and is no step of the policy's
      episode; the next relocation continues it.
    * When no prompt is pruned at the end of a period, the pending reward is known all the same and
      is given, with a next state whose one-hot part is zero.
    * A loss or an idleness that is not finite never reaches the policy: nothing moves, and a
      relocation whose reward it would have given is forgotten.

    Args:
        num_blocks (int): Number of blocks L.
        pruner (IdlenessPruner): Chooses the prompt.
        allocator (Allocator): Chooses its block.
        relocate_per_period (int): The most prompts that move in one period, >= 1; 1 is the paper.
        reward_baseline (str, optional): What is taken off the reward before the allocator gets it,
            see :class:`~mmprovpt.relocation.RewardBaseline`; None is the paper.
        reward_idleness (str): Whose idleness the reward takes off: ``'moved'``, that of the prompts that moved, which
            is Eq. 8; ``'largest'``, that of the idlest prompt when the period ends, which is the authors' code.
        reward_loss_scale (float): What losses in the reward are multiplied by, > 0. 1 is the paper; the authors' code
            has number of batches / batch size.
        state (str): Form of the allocator's state, see :func:`policy_state`.

    Attributes:
        last_reward (float, optional): Reward of Eq. 8, without baseline, that the last ``step``
            found for the relocations that opened the period.

    Raises:
        ConfigError: An argument is invalid, or more prompts shall move than ``verify_top`` are verified.
    """

    def __init__(self,
                 num_blocks: int,
                 pruner: IdlenessPruner,
                 allocator: Allocator,
                 relocate_per_period: int = 1,
                 reward_baseline: str | None = None,
                 reward_idleness: str = 'moved',
                 reward_loss_scale: float = 1.0,
                 state: str = 'scaled') -> None:
        if relocate_per_period < 1:
            raise ConfigError(f'relocate_per_period must be at least 1, but is {relocate_per_period}')
        if 0 < pruner.verify_top < relocate_per_period:
            raise ConfigError(f'verify_top is {pruner.verify_top}, too few for '
                              f'relocate_per_period={relocate_per_period}')
        check_choice('reward_idleness', reward_idleness, REWARD_IDLENESS)
        check_choice('state', state, STATES)
        if not reward_loss_scale > 0:
            raise ConfigError(f'reward_loss_scale must be more than 0, but is {reward_loss_scale}')
        self.num_blocks = num_blocks
        self.pruner = pruner
        self.allocator = allocator
        self.relocate_per_period = relocate_per_period
        self.baseline = RewardBaseline(reward_baseline)
        self.reward_idleness, self.reward_loss_scale, self.state = reward_idleness, reward_loss_scale, state
        self.last_reward: float | None = None
        # 𝓛_before of the relocations that wait for 𝓛_after, less Σ I_k if it is theirs.
        self._pending: float | None = None

    def step(self, loss: float, idleness: Tensor, block_index: Tensor, signals: Signals = None,
             verified: dict[int, float] | None = None) -> list[Move]:
        """Close a period and decide on the relocations that open the next one.

        Args:
            loss (float): Mean training loss of the period.
            idleness (Tensor): Mean idleness of every prompt over the period, (N,) float.
            block_index (Tensor): Block of every prompt in the period, (N,) int64.
            signals (dict, optional): What the allocator asks for in ``signals``, each (L,) float.
            verified (dict, optional): True idleness by number of those prompts that alone may move
                (``verify_top``); it then also is what the reward takes off. The state keeps
                the estimates, which there are for all.

        Returns:
            list[Move]: The moves to carry out, in order; none when no prompt is idle or the period
            is not finite. A prompt may be given back to its own block.
        """
        idleness = idleness.detach().float().cpu()
        blocks = block_index.detach().cpu().clone()
        pending, self._pending, self.last_reward = self._pending, None, None
        if not (math.isfinite(loss) and bool(torch.isfinite(idleness).all())):
            self.allocator.forget()
            return []
        loss *= self.reward_loss_scale
        scores, free = idleness, torch.ones(len(idleness), dtype=torch.bool)
        if verified is not None:
            scores, free = idleness.clone(), torch.zeros_like(free)
            for number, score in verified.items():
                scores[number], free[number] = score, True
        moves: list[Move] = []
        for turn in range(self.relocate_per_period):
            prompt = self.prune(scores, blocks, free)
            source = None if prompt is None else int(blocks[prompt])
            state = policy_state(idleness, blocks, source, self.num_blocks, self.state)
            if turn == 0 and pending is not None:
                self.last_reward = pending - loss - self._largest(idleness, blocks)
                self.allocator.observe(self.baseline.advantage(self.last_reward), state, signals)
            move = self.allocate(prompt, state, scores, blocks, signals)
            if move is None:
                break
            moves.append(move)
            blocks[move.prompt] = move.target
            free[move.prompt] = False
        if moves:
            self._pending = loss - (self.penalty(moves) if self.reward_idleness == 'moved' else 0)
        return moves

    def _largest(self, idleness: Tensor, blocks: Tensor) -> float:
        """What the reward takes off when a period ends."""
        return float(idleness[blocks >= 0].max()) if self.reward_idleness == 'largest' else 0.0

    # The three parts of a relocation; a subclass for another kind of action changes them.

    def prune(self, scores: Tensor, blocks: Tensor, free: Tensor) -> int | None:
        """The prompt that leaves its block, if one does; scores (N,), blocks (N,) and whether each may move (N,)."""
        eligible = self.pruner.eligible(blocks)
        return self.pruner.prune(scores, eligible[free[eligible]])

    def allocate(self, prompt: int | None, state: Tensor, scores: Tensor, blocks: Tensor,
                 signals: Signals) -> Move | None:
        """The move of a pruned prompt in a state (3L,), or None without one; the rest as for ``prune``."""
        if prompt is None:
            return None
        return Move(prompt, int(blocks[prompt]), self.allocator.act(state, signals), float(scores[prompt]))

    def penalty(self, moves: Sequence[Move]) -> float:
        """What the reward of moves takes off, because pruning alone would have gained it: the sum of I_k."""
        return sum(move.idleness for move in moves)

    def finish(self, loss: float, idleness: Tensor | None = None,
               block_index: Tensor | None = None) -> float | None:
        """Reward the last relocations after the last period; the policy is not asked again.

        Args:
            loss (float): Mean training loss of the last period, which must have been complete.
            idleness, block_index (Tensor, optional): As for ``step``; ``reward_idleness='largest'`` needs them.

        Returns:
            float or None: The reward, also as ``last_reward``; None when none is pending or the
            loss is not finite.
        """
        pending, self._pending = self._pending, None
        self.last_reward = None
        if pending is not None:
            reward = pending - loss * self.reward_loss_scale
            if idleness is not None and block_index is not None:
                reward -= self._largest(idleness.cpu(), block_index.cpu())
            self.last_reward = reward if math.isfinite(reward) else None
        return self.last_reward

    def state_dict(self) -> dict:
        """dict: All that decides from here on, as plain tensors and Python types."""
        return dict(
            num_blocks=self.num_blocks,
            pending=self._pending,
            last_reward=self.last_reward,
            pruner=self.pruner.state_dict(),
            baseline=self.baseline.state_dict(),
            allocator=self.allocator.state_dict())

    def load_state_dict(self, state: dict) -> None:
        """Continue from a ``state_dict()``.

        Raises:
            ConfigError: It is about another number of blocks.
        """
        if state['num_blocks'] != self.num_blocks:
            raise ConfigError(f'the relocation state is about {state["num_blocks"]} blocks, '
                              f'but the model has {self.num_blocks}')
        self.pruner.load_state_dict(state['pruner'])
        self.baseline.load_state_dict(state['baseline'])
        self.allocator.load_state_dict(state['allocator'])
        self._pending = state['pending']
        self.last_reward = state['last_reward']
