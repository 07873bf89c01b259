"""Idleness: how much the loss would fall if a prompt were not there (PRO-VPT Eq. 5; docs/method/idleness.md)."""
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from mmprovpt.errors import ConfigError
from mmprovpt.kinds import Kinds

if TYPE_CHECKING:
    from mmprovpt.prompts import PromptSet


class _WatchRows(torch.autograd.Function):
    """Rows as they are; their backward adds to sums. It works compiled, too, where hooks on tensors do not."""

    @staticmethod
    def forward(ctx, rows, owned, scale, shift, squares, linear):
        ctx.save_for_backward(rows, owned, scale, shift)
        ctx.sums = squares, linear
        return rows.view_as(rows)

    @staticmethod
    def backward(ctx, grad):
        rows, owned, scale, shift = ctx.saved_tensors
        squares, linear = ctx.sums
        _add_squares(squares, owned, grad, scale)
        if linear is not None:  # <∂L/∂n, n> of the standardised prompt n, for which scale and shift cancel out
            rows = rows.float() if shift is None else rows.float() - shift.float()
            score = (grad.float() * rows).sum(-1)
            linear.index_add_(0, owned, score.sum(0) if score.dim() == 2 else score)
        return grad, None, None, None, None, None


class _WatchGates(torch.autograd.Function):
    """Rows as they are, and gates of 0, whose backward adds to sums."""

    @staticmethod
    def forward(ctx, rows, owned, scale, squares, linear, quadratic, batch_size):
        ctx.save_for_backward(owned, scale)
        ctx.sums = squares, linear, quadratic
        # Zeros, but not for inductor, which cannot fold a constant of unknown size.
        gates = (owned - owned).float()[None].expand(batch_size, -1).clone()
        return rows.view_as(rows), gates

    @staticmethod
    def backward(ctx, grad, gate_grad):
        owned, scale = ctx.saved_tensors
        squares, linear, quadratic = ctx.sums
        _add_squares(squares, owned, grad, scale)
        linear.index_add_(0, owned, gate_grad.sum(0))
        if quadratic is not None:  # the loss is a mean, so γ is B times the gradient
            quadratic.index_add_(0, owned, gate_grad.shape[0] * gate_grad.square().sum(0))
        return grad, None, None, None, None, None, None


def _add_squares(squares: Tensor, owned: Tensor, grad: Tensor, scale: Tensor | None) -> None:
    """Squared norm of the gradient by each standardised prompt, for the need of a block."""
    inner = grad.float() if scale is None else grad.float() * scale.float()
    inner = inner.sum(0) if inner.dim() == 3 else inner
    squares.index_add_(0, owned, inner.square().sum(1))


class Criterion:
    r"""Mean estimated idleness of every prompt over a period, from training's own backward passes.

    The idleness of prompt k is :math:`I_k = \mathcal L(P) - \mathcal L(P \setminus p_k)`, positive where the prompt
    hurts (PRO-VPT Eq. 5). Subclasses estimate it by gradients that hooks read before the optimizer clips, steps and
    zeroes them; no pass is added. Bracket each iteration::

        criterion.begin(scale)      # what the loss is multiplied by before backward
        loss = model(batch); loss.backward(); ...       # one or several backward calls
        criterion.update(loss)

    Nothing in there waits for the device. Scores and sums are float32 whatever the autocast type. Beside the score,
    the *need* of a block is measured: the mean of :math:`\|\partial\mathcal L / \partial n_k\|^2` over its prompts,
    n the standardised prompt (docs/method/idleness.md, RigL's rule for weights).

    Args:
        prompts (PromptSet): Of a backbone, on their final device. This object becomes their probe.
        score_interval (int, optional): Score every so many iterations, from a period's first on, >= 1. None: the
            criterion's own ``default_interval``. Every loss counts.
    """

    default_interval = 1

    def __init__(self, prompts: 'PromptSet', score_interval: int | None = None) -> None:
        self.num_prompts = len(prompts.tokens)
        self.score_interval = self.default_interval if score_interval is None else score_interval
        # Flat, so that one all-reduce merges processes: N summed scores, N summed squared gradients, summed loss,
        # counted, scored and dropped iterations.
        self.sums = torch.zeros(2 * self.num_prompts + 4, dtype=torch.float32, device=prompts.tokens.device)
        self.prompts = prompts
        # Of the running iteration: what grows like the loss's scale, and what like its square (second-order
        # terms, squared gradients).
        self._linear = torch.zeros(self.num_prompts, dtype=torch.float32, device=prompts.tokens.device)
        self._quadratic = torch.zeros_like(self._linear)
        self._squares = torch.zeros_like(self._linear)
        self._scale: float | Tensor = 1.0
        self.scoring = False  # whether the running iteration is scored
        self._is_open = False
        self._begun = 0  # iterations of the period
        prompts.probe = self

    # What a forward calls, see mmprovpt.attention.block

    def watch(self, owned: Tensor, rows: Tensor, norm: nn.Module | None,
              batch_size: int) -> tuple[Tensor, Tensor | None]:
        """Have the backward of a block measure its prompts.

        Args:
            owned: (n,) int64, numbers of the prompts that the block reads.
            rows: (n, C), or (B, n, C) where samples differ: they, behind ``norm``.
            norm: The block's first, or None where prompts are read as they are (SwinV2).
            batch_size: B, number of samples.

        Returns:
            tuple: What the block is to read in place of ``rows``; and numbers (B, n) that are to be added to the logits
            of its prompts, or None.
        """
        if not self.scoring or not rows.requires_grad:
            return rows, None
        return self._watch(owned, rows, getattr(norm, 'weight', None), getattr(norm, 'bias', None), batch_size)

    def _watch(self, owned: Tensor, rows: Tensor, scale: Tensor | None, shift: Tensor | None,
               batch_size: int) -> tuple[Tensor, Tensor | None]:
        """For subclasses; here only what the need of a block follows from."""
        return _WatchRows.apply(rows, owned, scale, shift, self._squares, None), None

    # Iterations

    def begin(self, scale: float | Tensor = 1.0) -> None:
        """Open an iteration, before its forward.

        Args:
            scale (float or Tensor): Factor between the loss given to ``update`` and the one that is differentiated:
                AMP's loss scale times 1 / accumulative_counts. A tensor must have one element; one on the device
                of the tokens is not synchronised with the host.
        """
        for sums in (self._linear, self._quadratic, self._squares):
            sums.zero_()
        self._is_open = True
        self._scale, self.scoring = scale, self._begun % self.score_interval == 0
        self._begun += 1

    def update(self, loss: float | Tensor, clip: float | Tensor = 1.0) -> None:
        """Close the iteration and count it, or drop it as a whole if its gradients are not finite.

        An overflow of the scaled loss would otherwise poison the period's mean. A loss that is itself not finite
        does poison it: what ``compute`` returns is then NaN until the next reset, and nothing is to be decided by it.

        Args:
            loss (float or Tensor): Unscaled loss of the iteration, one element.
            clip (float or Tensor): What gradients are multiplied by before scores are read off them, one element.

        Raises:
            RuntimeError: No iteration is open.
        """
        if not self._is_open:
            raise RuntimeError('update() without begin(): call begin(scale) before the forward pass')
        loss = torch.as_tensor(loss, dtype=torch.float32, device=self.sums.device).detach().reshape(1)
        one, zero = torch.ones_like(loss), torch.zeros_like(loss)
        if not self.scoring:
            sample = torch.cat([self._linear, self._squares, loss, one, zero, zero])
        else:
            scale = self._scale / clip
            score = self._linear / scale - self._quadratic / 2 / scale / scale
            squares = self._squares / scale / scale
            sample = torch.cat([score, squares, loss, one, one, zero])
        # No number of the host is written into these tensors: that would wait for the device.
        dropped = torch.cat([torch.zeros_like(sample[:-1]), one])
        # where() and not a product: NaN * 0 is NaN.
        self.sums += torch.where(torch.isfinite(sample).all(), sample, dropped)
        self.sums[:-3] += loss - loss  # 0, or NaN
        self.scoring = self._is_open = False

    # Periods

    def compute(self) -> tuple[Tensor, float, int]:
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
        self.scoring, self._is_open, self._begun = False, False, 0

    def close(self) -> None:
        """Stop observing."""
        self.prompts.probe = None

    def state_dict(self) -> dict:
        """dict: The sums of the running period, one CPU tensor (2N + 4,) float32, and its iterations."""
        return dict(sums=self.sums.detach().cpu().clone(), begun=self._begun)

    def load_state_dict(self, state: dict) -> None:
        """Continue the period of ``state``.

        Raises:
            ConfigError: It is about another number of prompts.
        """
        sums = state['sums']
        if sums.shape != self.sums.shape:
            raise ConfigError(f'the idleness state is about {(len(sums) - 4) // 2} prompts, but the model has '
                              f'{self.num_prompts}: resume with the num_tokens of the run that wrote it')
        self.sums.copy_(sums)
        self.scoring, self._is_open, self._begun = False, False, state['begun']


class TaylorIdleness(Criterion):
    r"""First order in the prompt: :math:`\langle \partial \mathcal L / \partial p_k,\, p_k \rangle` (PRO-VPT Eq. 6).

    The paper's own. A pre-norm block hardly sees a prompt's length, so the score is a thousand times smaller than
    the change of the loss that it stands for (docs/method/idleness.md).
    """

    def __init__(self, prompts: 'PromptSet', score_interval: int | None = None) -> None:
        super().__init__(prompts, score_interval)
        self._handle = prompts.tokens.register_hook(self._see_tokens)

    def _see_tokens(self, grad: Tensor) -> None:
        # Several backward calls and re-entrant checkpointing deliver a gradient in parts, which add up: the score
        # is linear in it. Columns that a prompt does not use have gradient 0.
        if self.scoring:
            self._linear += (grad.detach().float() * self.prompts.tokens.detach().float()).sum(dim=1)

    def close(self) -> None:
        """Stop observing."""
        super().close()
        self._handle.remove()


class NormalisedTaylorIdleness(Criterion):
    r"""First order where the block reads the prompt: :math:`\langle \partial \mathcal L / \partial n_k,\, n_k \rangle`.

    n is the standardised prompt, behind the norm but for scale and shift; removal is its expansion to 0
    (docs/method/idleness.md).
    """

    def _watch(self, owned: Tensor, rows: Tensor, scale: Tensor | None, shift: Tensor | None,
               batch_size: int) -> tuple[Tensor, Tensor | None]:
        return _WatchRows.apply(rows, owned, scale, shift, self._squares, self._linear), None


class GateIdleness(Criterion):
    r"""First order in a gate on the logits, closed by removal: mean :math:`\gamma_{x,k}` (docs/method/idleness.md).

    :math:`\gamma_{x,k} = \partial \ell_x / \partial b_{x,k}` at 0, with :math:`b_{x,k}` added to the logits of prompt
    k in sample x. The loss is taken as a mean over samples, as losses of classifiers are.
    """

    # A scored iteration costs some 5 % more on Swin; on average training shall not cost more than 2 %.
    default_interval = 4

    def _watch(self, owned: Tensor, rows: Tensor, scale: Tensor | None, shift: Tensor | None,
               batch_size: int) -> tuple[Tensor, Tensor | None]:
        return _WatchGates.apply(rows, owned, scale, self._squares, self._linear, self._fisher(), batch_size)

    def _fisher(self) -> Tensor | None:
        """Where squares of the gates' gradients go, if they count."""
        return None


class FisherGateIdleness(GateIdleness):
    r"""Second order in the gate with the empirical Fisher: mean γ − ½ mean γ² (docs/method/idleness.md)."""

    def _fisher(self) -> Tensor | None:
        return self._quadratic


CRITERIA = Kinds('criterion')
CRITERIA.update(
    taylor=TaylorIdleness,
    taylor_norm=NormalisedTaylorIdleness,
    gate=GateIdleness,
    gate_fisher=FisherGateIdleness)


@torch.no_grad()
def true_idleness(prompts: 'PromptSet', numbers: Sequence[int], evaluate: Callable[[], Tensor]) -> Tensor:
    r"""Idleness by definition: each prompt is really taken away for one evaluation (PRO-VPT Eq. 5).

    Args:
        prompts (PromptSet): Of the evaluated model.
        numbers (Sequence[int]): Which to take away, one at a time.
        evaluate (Callable): Loss on the same data with the same randomness at each call, a tensor of one element;
            called ``len(numbers) + 1`` times.

    Returns:
        Tensor: (len(numbers),) float32 on the CPU, :math:`\mathcal L(P) - \mathcal L(P \setminus p_k)`.
    """
    whole = evaluate().detach().float().reshape(1)
    scores = []
    for number in numbers:
        with prompts.without(number):
            scores.append(whole - evaluate().detach().float().reshape(1))
    return torch.cat(scores).cpu() if scores else torch.zeros(0)
