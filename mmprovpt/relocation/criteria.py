"""Idleness: how much the loss would fall if a prompt were not there (001 Eq. 5; METHOD § 3)."""
from functools import partial
from typing import Callable, Dict, Optional, Sequence, Tuple, Union

import torch
from torch import Tensor, nn


class Criterion:
    r"""Mean estimated idleness of every prompt over a period, from training's own backward passes.

    The idleness of prompt k is :math:`I_k = \mathcal L(P) - \mathcal L(P \setminus p_k)`, positive where the prompt
    hurts (001 Eq. 5). Subclasses estimate it by gradients that hooks read before the optimizer clips, steps and
    zeroes them; no pass is added. Bracket each iteration::

        criterion.begin(scale)      # what the loss is multiplied by before backward
        loss = model(batch); loss.backward(); ...       # one or several backward calls
        criterion.update(loss)

    Nothing in there waits for the device. Scores and sums are float32 whatever the autocast type. Beside the score,
    the *need* of a block is measured: the mean of :math:`\|\partial\mathcal L / \partial n_k\|^2` over its prompts,
    n the standardised prompt (METHOD § 4, RigL's rule for weights).

    Args:
        pool (PromptSet): The prompts of a backbone, on their final device. This object becomes its observer.
        score_interval (int, optional): Score every so many iterations, from a period's first on, >= 1. None: the
            criterion's own ``default_interval``. Every loss counts.
    """

    default_interval = 1

    def __init__(self, pool: nn.Module, score_interval: Optional[int] = None) -> None:
        self.num_prompts = len(pool.tokens)
        self.score_interval = self.default_interval if score_interval is None else score_interval
        # Flat, so that one all-reduce merges processes: N summed scores, N summed squared gradients, summed loss,
        # counted, scored and dropped iterations.
        self.sums = torch.zeros(2 * self.num_prompts + 4, dtype=torch.float32, device=pool.tokens.device)
        self._pool = pool
        # Of the running iteration: what grows like the loss's scale, and what like its square (second-order
        # terms, squared gradients).
        self._linear = torch.zeros(self.num_prompts, dtype=torch.float32, device=pool.tokens.device)
        self._quadratic = torch.zeros_like(self._linear)
        self._squares = torch.zeros_like(self._linear)
        self._scale: Union[float, Tensor, None] = None  # None: nothing is scored
        self._is_open = False
        self._begun = 0  # iterations of the period
        pool.observer = self

    # What a forward calls, see mmprovpt.attention.reader

    def watch_rows(self, block: int, rows: Tensor, norm: nn.Module) -> None:
        """A block reads ``rows``, its prompts behind ``norm``: (n, C), or (B, n, C) where samples differ."""
        if self._scale is not None and rows.requires_grad:
            rows.register_hook(partial(self._see_rows, self._pool.members(block), rows.detach(), norm))

    def open_gates(self, block: int, batch_size: int, q: Tensor) -> Optional[Tensor]:
        """Numbers (B, n) to be added to the logits of the block's prompts, or None; here none are needed."""
        return None

    def _see_rows(self, members: Tensor, rows: Tensor, norm: nn.Module, grad: Tensor) -> None:
        grad, rows = grad.detach().float(), rows.float()
        scale, shift = getattr(norm, 'weight', None), getattr(norm, 'bias', None)
        inner = grad if scale is None else grad * scale.detach()
        inner = inner.sum(0) if inner.dim() == 3 else inner
        self._squares.index_add_(0, members, inner.square().sum(1))
        self._see_normalised(members, grad, rows if shift is None else rows - shift.detach())

    def _see_normalised(self, members: Tensor, grad: Tensor, rows: Tensor) -> None:
        """For subclasses: gradient and value of rows behind the norm, its shift taken off."""

    # Iterations

    def begin(self, scale: Union[float, Tensor] = 1.0) -> None:
        """Open an iteration, before its forward.

        Args:
            scale (float or Tensor): Factor between the loss given to ``update`` and the one that is differentiated:
                AMP's loss scale times 1 / accumulative_counts. A tensor must have one element; one on the device
                of the tokens is not synchronised with the host.
        """
        for sums in (self._linear, self._quadratic, self._squares):
            sums.zero_()
        self._is_open = True
        self._scale = scale if self._begun % self.score_interval == 0 else None
        self._begun += 1

    def update(self, loss: Union[float, Tensor]) -> None:
        """Close the iteration and count it, or drop it as a whole if its gradients are not finite.

        An overflow of the scaled loss would otherwise poison the period's mean. A loss that is itself not finite
        does poison it: what ``compute`` returns is then NaN until the next reset, and nothing is to be decided by it.

        Args:
            loss (float or Tensor): Unscaled loss of the iteration, one element.

        Raises:
            RuntimeError: No iteration is open.
        """
        if not self._is_open:
            raise RuntimeError('update() without begin(): call begin(scale) before the forward pass')
        loss = torch.as_tensor(loss, dtype=torch.float32, device=self.sums.device).detach().reshape(1)
        one, zero = torch.ones_like(loss), torch.zeros_like(loss)
        if self._scale is None:
            sample = torch.cat([self._linear, self._squares, loss, one, zero, zero])
        else:
            score = self._linear / self._scale - self._quadratic / 2 / self._scale / self._scale
            squares = self._squares / self._scale / self._scale
            sample = torch.cat([score, squares, loss, one, one, zero])
        dropped = torch.zeros_like(sample)
        dropped[-1] = 1
        # where() and not a product: NaN * 0 is NaN.
        sample = torch.where(torch.isfinite(sample).all(), sample, dropped)
        sample[:-3] += torch.where(torch.isfinite(loss), 0., float('nan'))
        self.sums += sample
        self._scale, self._is_open = None, False

    # Periods

    def compute(self) -> Tuple[Tensor, float, int]:
        """Means since the last reset; waits for the device.

        Returns:
            tuple: Idleness (N,) float32 on the CPU, in units of the loss; mean loss; number of iterations behind
            the loss. What has none behind it is NaN.
        """
        sums = self.sums.cpu()
        total, count, scored, _ = sums[-4:]
        return sums[:self.num_prompts] / scored, float(total / count), int(count)

    def need(self, block_index: Tensor, num_blocks: int) -> Tensor:
        """Need of every block since the last reset; waits for the device.

        Args:
            block_index (Tensor): Block of every prompt in the period, (N,) int64.
            num_blocks (int): Number of blocks L.

        Returns:
            Tensor: (L,) float32 on the CPU, squared units of the loss; NaN for a block without prompts.
        """
        sums, index = self.sums.cpu(), block_index.cpu()
        owned, squares = index >= 0, sums[self.num_prompts:2 * self.num_prompts]
        totals = torch.zeros(num_blocks).index_add_(0, index[owned], squares[owned])
        return totals / torch.bincount(index[owned], minlength=num_blocks) / sums[-2]

    @property
    def num_dropped(self) -> int:
        """int: Iterations dropped since the last reset; waits for the device."""
        return int(self.sums[-1])

    def reset(self) -> None:
        """Start a new period."""
        self.sums.zero_()
        self._scale, self._is_open, self._begun = None, False, 0

    def close(self) -> None:
        """Stop observing."""
        self._pool.observer = None

    def state_dict(self) -> dict:
        """dict: The sums of the running period, one CPU tensor (2N + 4,) float32, and its iterations."""
        return dict(sums=self.sums.detach().cpu().clone(), begun=self._begun)

    def load_state_dict(self, state: dict) -> None:
        """Continue the period of ``state``.

        Raises:
            ValueError: It is about another number of prompts.
        """
        sums = state['sums']
        if sums.shape != self.sums.shape:
            raise ValueError(f'the idleness state is about {(len(sums) - 4) // 2} prompts, '
                             f'but the model has {self.num_prompts}')
        self.sums.copy_(sums)
        self._scale, self._is_open, self._begun = None, False, state['begun']


class TaylorIdleness(Criterion):
    r"""First order in the prompt: :math:`\langle \partial \mathcal L / \partial p_k,\, p_k \rangle` (001 Eq. 6).

    The paper's own. A pre-norm block hardly sees a prompt's length, so the score is a thousand times smaller than
    the change of the loss that it stands for (METHOD § 3).
    """

    def __init__(self, pool: nn.Module, score_interval: Optional[int] = None) -> None:
        super().__init__(pool, score_interval)
        self._handle = pool.tokens.register_hook(self._see_tokens)

    def _see_tokens(self, grad: Tensor) -> None:
        # Several backward calls and re-entrant checkpointing deliver a gradient in parts, which add up: the score
        # is linear in it. Columns that a prompt does not use have gradient 0.
        if self._scale is not None:
            self._linear += (grad.detach().float() * self._pool.tokens.detach().float()).sum(dim=1)

    def close(self) -> None:
        """Stop observing."""
        super().close()
        self._handle.remove()


class NormalisedTaylorIdleness(Criterion):
    r"""First order where the block reads the prompt: :math:`\langle \partial \mathcal L / \partial n_k,\, n_k \rangle`.

    n is the standardised prompt, behind the norm but for scale and shift; removal is its expansion to 0 (METHOD § 3).
    """

    def _see_normalised(self, members: Tensor, grad: Tensor, rows: Tensor) -> None:
        score = (grad * rows).sum(-1)
        self._linear.index_add_(0, members, score.sum(0) if score.dim() == 2 else score)


class GateIdleness(Criterion):
    r"""First order in a gate on the attention logits, closed by removal: mean :math:`\gamma_{x,k}` (METHOD § 3).

    :math:`\gamma_{x,k} = \partial \ell_x / \partial b_{x,k}` at 0, with :math:`b_{x,k}` added to the logits of prompt
    k in sample x. The loss is taken as a mean over samples, as losses of classifiers are.
    """

    # A scored iteration costs some 5 % more on Swin; on average training shall not cost more than 2 %.
    default_interval = 4

    def open_gates(self, block: int, batch_size: int, q: Tensor) -> Optional[Tensor]:
        """Zeros (B, n) float32 whose gradient is the score; None where no gradient will come."""
        if self._scale is None or not torch.is_grad_enabled():
            return None
        members = self._pool.members(block)
        gates = torch.zeros(batch_size, len(members), device=q.device, requires_grad=True)
        gates.register_hook(partial(self._see_gates, members))
        return gates

    def _see_gates(self, members: Tensor, grad: Tensor) -> None:
        self._linear.index_add_(0, members, grad.detach().sum(0))


class FisherGateIdleness(GateIdleness):
    r"""Second order in the gate with the empirical Fisher: mean γ − ½ mean γ² (METHOD § 3)."""

    def _see_gates(self, members: Tensor, grad: Tensor) -> None:
        super()._see_gates(members, grad)
        # The loss is a mean, so γ is B times the gradient.
        self._quadratic.index_add_(0, members, len(grad) * grad.detach().square().sum(0))


CRITERIA: Dict[str, type] = dict(
    taylor=TaylorIdleness,
    taylor_norm=NormalisedTaylorIdleness,
    gate=GateIdleness,
    gate_fisher=FisherGateIdleness)


@torch.no_grad()
def true_idleness(pool: nn.Module, prompts: Sequence[int], evaluate: Callable[[], Tensor]) -> Tensor:
    r"""Idleness by definition: each prompt is really taken away for one evaluation (001 Eq. 5).

    Args:
        pool (PromptSet): The prompts of the evaluated model.
        prompts (Sequence[int]): Which to take away, one at a time.
        evaluate (Callable): Loss on the same data with the same randomness at each call, a tensor of one element;
            called ``len(prompts) + 1`` times.

    Returns:
        Tensor: (len(prompts),) float32 on the CPU, :math:`\mathcal L(P) - \mathcal L(P \setminus p_k)`.
    """
    whole = evaluate().detach().float().reshape(1)
    scores = []
    for prompt in prompts:
        with pool.without(prompt):
            scores.append(whole - evaluate().detach().float().reshape(1))
    return torch.cat(scores).cpu() if scores else torch.zeros(0)
