"""One period of prompt relocation: observe, reward, prune, allocate."""
import math
from typing import Callable, Dict, List, NamedTuple, Optional, Union

import torch
from torch import Tensor

from .allocator import Allocator, Signals
from .pruners import IdlenessPruner
from .reward import RewardBaseline


class Move(NamedTuple):
    """Prompt ``prompt`` leaves block ``source`` for ``target`` (-1: no block), having had ``idleness``."""
    prompt: int
    source: int
    target: int
    idleness: float


def policy_state(idleness: Tensor, block_index: Tensor, source: Optional[int],
                 num_blocks: int) -> Tensor:
    """State of the allocation (001 § 3.3): block-wise idleness, distribution, one-hot source.

    The networks are tanh MLPs, so each part is brought to order 1: the mean idleness of each
    block's prompts (0 where it has none) is divided by the largest of them in absolute value, for
    raw Taylor scores are about 1e-5 and their scale drifts; the counts become L n_i / N - 1, a
    block's surplus over its uniform share, in [-1, L - 1].

    Args:
        idleness (Tensor): Idleness of every prompt, (N,) float.
        block_index (Tensor): Block of every prompt, (N,) int64; -1 for one that no block owns.
        source (int, optional): Block of the pruned prompt; None or -1 gives zeros instead of a one-hot.
        num_blocks (int): Number of blocks L.

    Returns:
        Tensor: (3L,) float32 on the CPU.
    """
    owned = block_index >= 0
    counts = torch.bincount(block_index[owned], minlength=num_blocks).float()
    sums = torch.zeros(num_blocks).index_add_(0, block_index[owned], idleness[owned].float())
    means = sums / counts.clamp(min=1)
    largest = means.abs().max()
    if largest > 0:
        means = means / largest
    surplus = counts * (num_blocks / owned.sum().clamp(min=1)) - 1
    one_hot = torch.zeros(num_blocks)
    if source is not None and source >= 0:
        one_hot[source] = 1
    return torch.cat([means, surplus, one_hot])


class Relocator:
    r"""Alternates pruning and allocation between periods of tuning (001 § 3.3).

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
    * Where the allocator chooses the source too, pruning is part of its action: the reward is
      :math:`\mathcal L_{before} - \mathcal L_{after}`, and the pruner only says which prompt of
      that block it is.

    Args:
        num_blocks (int): Number of blocks L.
        pruner (IdlenessPruner): Chooses the prompt.
        allocator (Allocator): Chooses its block.
        relocate_per_period (int): The most prompts that move in one period, >= 1; 1 is the paper.
        reward_baseline (str, optional): What is taken off the reward before the allocator gets it,
            see :class:`~mmprovpt.relocation.RewardBaseline`; None is the paper.

    Attributes:
        last_reward (float, optional): Reward of Eq. 8, without baseline, that the last ``step``
            found for the relocations that opened the period.

    Raises:
        ValueError: ``relocate_per_period`` or ``reward_baseline`` is invalid, or more prompts shall
            move than ``verify_top`` are verified, or several by an allocator that chooses the source.
    """

    def __init__(self,
                 num_blocks: int,
                 pruner: IdlenessPruner,
                 allocator: Allocator,
                 relocate_per_period: int = 1,
                 reward_baseline: Optional[str] = None) -> None:
        if relocate_per_period < 1:
            raise ValueError(f'relocate_per_period must be at least 1, but is {relocate_per_period}')
        if relocate_per_period > 1 and allocator.chooses_source:
            raise ValueError(f'{type(allocator).__name__} moves one prompt per period, but '
                             f'relocate_per_period is {relocate_per_period}')
        if 0 < pruner.verify_top < relocate_per_period:
            raise ValueError(f'verify_top is {pruner.verify_top}, too few for '
                             f'relocate_per_period={relocate_per_period}')
        self.num_blocks = num_blocks
        self.pruner = pruner
        self.allocator = allocator
        self.relocate_per_period = relocate_per_period
        self.baseline = RewardBaseline(reward_baseline)
        self.last_reward: Optional[float] = None
        # 𝓛_before - Σ I_k of the relocations that wait for 𝓛_after.
        self._pending: Optional[float] = None

    def step(self, loss: float, idleness: Tensor, block_index: Tensor,
             signals: Union[Signals, Callable[[Optional[int]], Signals]] = None,
             verified: Optional[Dict[int, float]] = None) -> List[Move]:
        """Close a period and decide on the relocations that open the next one.

        Args:
            loss (float): Mean training loss of the period.
            idleness (Tensor): Mean idleness of every prompt over the period, (N,) float.
            block_index (Tensor): Block of every prompt in the period, (N,) int64.
            signals (dict or Callable, optional): What the allocator asks for in ``signals``, each (L,)
                float; see ``mmprovpt.relocation.allocator.block_signal`` for values that are unknown. Or
                a function that returns it, given the number of the pruned prompt (None without one).
            verified (dict, optional): True idleness by number of those prompts that alone may move
                (``verify_top``); it then also is what the reward takes off. The state keeps
                the estimates, which there are for all.

        Returns:
            list[Move]: The moves to carry out, in order; none when no prompt is idle or the period
            is not finite. A prompt may be given back to its own block.
        """
        idleness = idleness.detach().float().cpu()
        block_index = block_index.detach().cpu()
        pending, self._pending, self.last_reward = self._pending, None, None
        if not (math.isfinite(loss) and bool(torch.isfinite(idleness).all())):
            self.allocator.forget()
            return []
        blocks, scores, free = block_index.clone(), idleness, torch.ones(len(idleness), dtype=torch.bool)
        if verified:
            scores, free = idleness.clone(), torch.zeros_like(free)
            for prompt, score in verified.items():
                scores[prompt], free[prompt] = score, True
        moves: List[Move] = []
        for turn in range(self.relocate_per_period):
            candidates = self.pruner.candidates(blocks)
            candidates = candidates[free[candidates]]
            prompt = None if self.allocator.chooses_source else self.pruner.prune(scores, candidates)
            source = None if prompt is None else int(blocks[prompt])
            state = policy_state(idleness, blocks, source, self.num_blocks)
            seen = signals(prompt) if callable(signals) else signals
            if turn == 0 and pending is not None:
                self.last_reward = pending - loss
                credit = self.baseline.advantage(self.last_reward)
                self.allocator.observe(credit, state, seen)
            if prompt is None and not self.allocator.chooses_source:
                break
            target = self.allocator.act(state, seen)
            if self.allocator.chooses_source:
                source, target = divmod(target, self.num_blocks)
                prompt = self.pruner.pick(idleness, (blocks == source).nonzero().flatten())
            moves.append(Move(prompt, source, target, float(scores[prompt])))
            blocks[prompt] = target
            free[prompt] = False
        if moves:
            merit = 0 if self.allocator.chooses_source else sum(move.idleness for move in moves)
            self._pending = loss - merit
        return moves

    def finish(self, loss: float) -> Optional[float]:
        """Reward the last relocations after the last period; the policy is not asked again.

        Args:
            loss (float): Mean training loss of the last period, which must have been complete.

        Returns:
            float or None: The reward, also as ``last_reward``; None when none is pending or the
            loss is not finite.
        """
        pending, self._pending = self._pending, None
        known = pending is not None and math.isfinite(loss)
        self.last_reward = pending - loss if known else None
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
            ValueError: It is about another number of blocks.
        """
        if state['num_blocks'] != self.num_blocks:
            raise ValueError(f'the relocation state is about {state["num_blocks"]} blocks, '
                             f'but the model has {self.num_blocks}')
        self.pruner.load_state_dict(state['pruner'])
        self.baseline.load_state_dict(state['baseline'])
        self.allocator.load_state_dict(state['allocator'])
        self._pending = state['pending']
        self.last_reward = state['last_reward']
