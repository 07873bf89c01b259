"""One period of prompt relocation: observe, reward, prune, allocate."""
import math
from typing import NamedTuple, Optional

import torch
from torch import Tensor

from .ppo import PPOAllocator
from .pruners import IdlenessPruner


class Move(NamedTuple):
    """Prompt ``prompt`` leaves block ``source`` for block ``target``, having had ``idleness``."""
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
        block_index (Tensor): Block of every prompt, (N,) int64.
        source (int, optional): Block of the pruned prompt; None gives zeros instead of a one-hot.
        num_blocks (int): Number of blocks L.

    Returns:
        Tensor: (3L,) float32 on the CPU.
    """
    counts = torch.bincount(block_index, minlength=num_blocks).float()
    sums = torch.zeros(num_blocks).index_add_(0, block_index, idleness.float())
    means = sums / counts.clamp(min=1)
    largest = means.abs().max()
    if largest > 0:
        means = means / largest
    surplus = counts * (num_blocks / len(block_index)) - 1
    one_hot = torch.zeros(num_blocks)
    if source is not None:
        one_hot[source] = 1
    return torch.cat([means, surplus, one_hot])


class Relocator:
    r"""Alternates pruning and allocation between periods of tuning (001 § 3.3).

    A *period* is the training between two calls of ``step``. The relocation that opens a period is
    rewarded when it ends: :math:`r = \mathcal L_{before} - I_k - \mathcal L_{after}` (Eq. 8), with
    the mean training losses of the periods before and after it. It sees no model: whoever calls it
    carries out the move.

    * A period that opened without a relocation gives no reward and is no step of the policy's
      episode; the next relocation continues it.
    * When no prompt is pruned at the end of a period, the pending reward is known all the same and
      is given, with a next state whose one-hot part is zero.
    * A loss or an idleness that is not finite never reaches the policy: nothing moves, and a
      relocation whose reward it would have given is forgotten.

    Args:
        num_blocks (int): Number of blocks L.
        pruner (IdlenessPruner): Chooses the prompt.
        allocator (PPOAllocator): Chooses its block.
    """

    def __init__(self, num_blocks: int, pruner: IdlenessPruner, allocator: PPOAllocator) -> None:
        self.num_blocks = num_blocks
        self.pruner = pruner
        self.allocator = allocator
        self.last_reward: Optional[float] = None
        # 𝓛_before - I_k of the relocation that waits for 𝓛_after.
        self._pending: Optional[float] = None

    def step(self, loss: float, idleness: Tensor, block_index: Tensor) -> Optional[Move]:
        """Close a period and decide on the relocation that opens the next one.

        Args:
            loss (float): Mean training loss of the period.
            idleness (Tensor): Mean idleness of every prompt over the period, (N,) float.
            block_index (Tensor): Block of every prompt in the period, (N,) int64.

        Returns:
            Move or None: The move to carry out; None when no prompt is idle or the period is not
            finite. A prompt may be given back to its own block. ``last_reward`` is the reward of
            the relocation that opened the period, or None.
        """
        idleness = idleness.detach().float().cpu()
        block_index = block_index.detach().cpu()
        pending, self._pending, self.last_reward = self._pending, None, None
        if not (math.isfinite(loss) and bool(torch.isfinite(idleness).all())):
            return None
        prompt = self.pruner.prune(idleness)
        source = None if prompt is None else int(block_index[prompt])
        state = policy_state(idleness, block_index, source, self.num_blocks)
        if pending is not None:
            self.last_reward = pending - loss
            self.allocator.observe(self.last_reward, state)
        if prompt is None:
            return None
        target = self.allocator.act(state)
        score = float(idleness[prompt])
        self._pending = loss - score
        return Move(prompt, source, target, score)

    def finish(self, loss: float) -> Optional[float]:
        """Reward the last relocation after the last period; the policy is not asked again.

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
            allocator=self.allocator.state_dict())

    def load_state_dict(self, state: dict) -> None:
        """Continue from a ``state_dict()``.

        Raises:
            ValueError: It is about another number of blocks.
        """
        if state['num_blocks'] != self.num_blocks:
            raise ValueError(f'the relocation state is about {state["num_blocks"]} blocks, '
                             f'but the model has {self.num_blocks}')
        self.allocator.load_state_dict(state['allocator'])
        self._pending = state['pending']
        self.last_reward = state['last_reward']
