"""What a freed prompt would be worth in each block, before it goes there (METHOD § 4, `virtual`)."""
import math
from typing import Callable, Dict, Iterable

import torch
from torch import Tensor, nn

# Gate at which the gain is read, in place of 0, where the logit's offset log m is -inf. Where attention is sharp the
# gain falls quickly with m; float32 is exact enough down here, since no sum mixes m with larger numbers (fp16 is not).
OPENING = 1e-6


class _Gates:
    """An observer of the pool that puts the guest of every block behind one gate each."""

    def __init__(self, pool: nn.Module) -> None:
        self._pool = pool
        self.logs: Dict[int, Tensor] = {}

    def watch_rows(self, block: int, rows: Tensor, norm: nn.Module) -> None:
        """Nothing is to be seen here."""

    def open_gates(self, block: int, batch_size: int, q: Tensor) -> Tensor:
        """(B, n) offsets of the block's logits: 0, and log m for the guest, its last row."""
        # One leaf per block, also when gradient checkpointing runs the block again.
        if block not in self.logs:
            self.logs[block] = torch.full((1, ), math.log(OPENING), device=q.device, requires_grad=True)
        others = torch.zeros(batch_size, len(self._pool.members(block)) - 1, device=q.device)
        return torch.cat([others, self.logs[block].expand(batch_size, 1)], 1)


def virtual_gain(pool: nn.Module, prompt: int, losses: Iterable[Callable[[], Tensor]]) -> Tensor:
    r"""First-order gain of opening a freed prompt in each block: :math:`-\partial\mathcal L / \partial m_j` near 0.

    The prompt leaves its block and is a guest in every block at once, its attention weight multiplied by a gate
    :math:`m_j` (log m on the logits). One forward and one backward per loss give the gain of all blocks. Parameters
    get no gradient, and the pool is as before afterwards.

    Args:
        pool (PromptSet): The prompts of the model behind ``losses``.
        prompt (int): Number of the freed prompt.
        losses (Iterable[Callable]): Each runs the model on a batch and returns its loss, one element; the model should
            be in eval mode, lest dropout hide the prompt.

    Returns:
        Tensor: (L,) float32 on the CPU, in units of the loss; positive where the prompt would help.
    """
    observer, pool.observer = pool.observer, None
    gains = []
    try:
        with pool.guest(prompt), torch.enable_grad():
            for loss in losses:
                gates = pool.observer = _Gates(pool)
                value = loss()
                logs = [gates.logs[block] for block in range(pool.num_blocks)]
                gains.append(-torch.cat(torch.autograd.grad(value, logs)) / OPENING)
    finally:
        pool.observer = observer
    return torch.stack(gains).mean(0).float().cpu()
