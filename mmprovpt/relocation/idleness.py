"""Idleness: how much the loss would fall if a prompt were not there."""
from typing import Tuple, Union

import torch
from torch import Tensor, nn


class TaylorIdleness:
    r"""Mean first-order idleness of every prompt over a period.

    The idleness of prompt k is :math:`I_k = \mathcal L(P) - \mathcal L(P \setminus p_k)`, positive
    where the prompt hurts (001 Eq. 5). To first order around :math:`p_k` it is
    :math:`\langle \partial \mathcal L / \partial p_k,\, p_k \rangle` (001 Eq. 6 and App. E). The
    gradients are those of training's own backward passes, read by a hook on the parameter before
    the optimizer clips, steps and zeroes them; no pass is added. Bracket each iteration::

        idleness.begin(scale)      # what the loss is multiplied by before backward
        loss.backward(); ...       # one or several backward calls
        idleness.end(loss)

    Nothing in there waits for the device. Score and sums are float32 whatever the autocast type,
    because a score is small beside its terms: a pre-norm block hardly sees a prompt's length.

    Args:
        tokens (nn.Parameter): Prompts, (N, C_max), one per row, already on their final device.
            Columns that a prompt does not use must have gradient 0.
    """

    def __init__(self, tokens: nn.Parameter) -> None:
        self.num_prompts = len(tokens)
        # Flat, so that one all-reduce merges processes: N summed scores, summed loss, counted and
        # dropped iterations.
        self.sums = torch.zeros(self.num_prompts + 3, dtype=torch.float32, device=tokens.device)
        self._tokens = tokens
        self._score = torch.zeros(self.num_prompts, dtype=torch.float32, device=tokens.device)
        self._scale: Union[float, Tensor, None] = None  # None: outside of an iteration
        self._handle = tokens.register_hook(self._collect)

    def begin(self, scale: Union[float, Tensor] = 1.0) -> None:
        """Open an iteration, before its backward.

        Args:
            scale (float or Tensor): Factor between the loss given to ``end`` and the one that is
                differentiated: AMP's loss scale times 1 / accumulative_counts. A tensor must have
                one element; one on the device of the tokens is not synchronised with the host.
        """
        self._score.zero_()
        self._scale = scale

    def _collect(self, grad: Tensor) -> None:
        """Add ⟨g_k, p_k⟩ of one (perhaps partial) gradient (N, C_max).

        Re-entrant checkpointing and several backward calls deliver a gradient in parts; the score
        is linear in it, so the parts add up.
        """
        if self._scale is not None:
            products = grad.detach().float() * self._tokens.detach().float()
            self._score += products.sum(dim=1)

    def end(self, loss: Union[float, Tensor]) -> None:
        """Close the iteration and count it, or drop it as a whole if anything is not finite.

        An overflow of the scaled loss would otherwise poison the period's mean.

        Args:
            loss (float or Tensor): Unscaled loss of the iteration, one element.

        Raises:
            RuntimeError: No iteration is open.
        """
        if self._scale is None:
            raise RuntimeError('end() without begin(): call begin(scale) before the backward pass')
        device = self.sums.device
        loss = torch.as_tensor(loss, dtype=torch.float32, device=device).detach().reshape(1)
        score = self._score / self._scale
        finite = torch.isfinite(score).all() & torch.isfinite(loss)
        one = torch.ones_like(loss)
        sample = torch.cat([score, loss, one, torch.zeros_like(one)])
        dropped = torch.zeros_like(sample)
        dropped[-1] = 1
        # where() and not a product: NaN * 0 is NaN.
        self.sums += torch.where(finite, sample, dropped)
        self._scale = None

    def compute(self) -> Tuple[Tensor, float, int]:
        """Means since the last reset; waits for the device.

        Returns:
            tuple: Idleness (N,) float32 on the CPU, in units of the loss; mean loss; number of
            iterations behind them. Without any, idleness and loss are NaN.
        """
        sums = self.sums.cpu()
        count = int(sums[-2])
        if count == 0:
            return torch.full((self.num_prompts, ), float('nan')), float('nan'), 0
        return sums[:self.num_prompts] / count, float(sums[-3] / count), count

    @property
    def num_dropped(self) -> int:
        """int: Iterations dropped since the last reset; waits for the device."""
        return int(self.sums[-1])

    def reset(self) -> None:
        """Start a new period."""
        self.sums.zero_()
        self._scale = None

    def close(self) -> None:
        """Stop listening to the parameter."""
        self._handle.remove()

    def state_dict(self) -> dict:
        """dict: The sums of the running period as one CPU tensor (N + 3,) float32."""
        return dict(sums=self.sums.detach().cpu().clone())

    def load_state_dict(self, state: dict) -> None:
        """Continue the period of ``state``.

        Raises:
            ValueError: It is about another number of prompts.
        """
        sums = state['sums']
        if sums.shape != self.sums.shape:
            raise ValueError(f'the idleness state is about {len(sums) - 3} prompts, '
                             f'but the model has {self.num_prompts}')
        self.sums.copy_(sums)
        self._scale = None
