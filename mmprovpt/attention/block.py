"""A transformer block that owns prompts: it reads its rows, and hands them to its attention."""
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from . import running


class Given(NamedTuple):
    """What the rows of a block follow from, beside its input.

    Attributes:
        owned: (n,) int64, numbers of the prompts that it owns.
        grid: Height and width of the map of patches, if known.
        kept: (B, n, C), what the block before made of its prompts, where that goes on.
        prompts: Whose rows they are.
        folded: What the attention makes of them, where that is known already.
    """
    owned: Tensor
    grid: tuple[int, int] | None
    kept: Tensor | None
    prompts: Any = None
    folded: running.Projected | None = None


class PromptedBlock:
    """In front of a block's class: its prompts, as its attention sees tokens, are keys and values of that.

    Attributes:
        norm_first: Whether attention sees tokens behind the block's first norm; else that norm comes after attention,
            and prompts are read as they are.
    """

    place: running.Place
    norm_first = True
    _checkpointed = False

    def forward(self, x: Tensor, *args, **kwargs) -> Tensor:
        """(B, N, C) or (B, h, w, C) to the same, as upstream.

        Raises:
            RuntimeError: Prompts can get no gradient here, or lack what only the forward of the backbone knows.
        """
        prompts, number = self.place
        record = running.current(prompts)
        if record is None:
            given = Given(prompts.owners()[number], None, None, prompts)
        else:
            given = Given(record.owners[number], record.grid, record.kept, record.reader, record.folded[number])
            in_vain = record.wants_grad and not torch.is_grad_enabled() and not x.requires_grad
            if in_vain and given.owned.shape[0] > 0:
                raise RuntimeError(
                    f'The backbone was entered with gradients on, but block {number} runs with them off and its input '
                    'needs none, so that its prompts would get no gradient: re-entrant checkpointing does that. Use '
                    'with_cp=True in the config, backbone.set_grad_checkpointing(), or checkpoint(use_reentrant=False)')
        if self.checkpointed and torch.is_grad_enabled():
            out, kept = checkpoint(self._run, given, x, *args, use_reentrant=False, **kwargs)
        else:
            out, kept = self._run(given, x, *args, **kwargs)
        if record is not None:
            record.kept = kept
        return out

    @property
    def checkpointed(self) -> bool:
        """Whether activations are computed again in backward, instead of kept."""
        return self._checkpointed

    @checkpointed.setter
    def checkpointed(self, value: bool) -> None:
        self._checkpointed = bool(value)
        if value:
            self.place.prompts.has_checkpoints = True

    @property
    def with_cp(self) -> bool:
        """Whether the block is checkpointed; while it runs, no: upstream's own (re-entrant) checkpointing stays off."""
        return self.checkpointed and running.handed() is None

    @with_cp.setter
    def with_cp(self, value: bool) -> None:
        self.checkpointed = value

    def _run(self, given: Given, x: Tensor, *args, **kwargs) -> tuple[Tensor, Tensor | None]:
        """Output of the block, and prompts for the next one; all that it depends on is in the arguments."""
        if given.folded is not None:
            return self._upstream(running.Handed(None, projected=given.folded), x, *args, **kwargs), None
        prompts, number = given.prompts, self.place.number
        norm = first_norm(self) if self.norm_first else None
        rows = self.normed(prompts.read(number, x, given).to(x.dtype))
        gates = None
        if prompts.probe is not None:
            rows, gates = prompts.probe.watch(given.owned, rows, norm, x.shape[0])
        return self._upstream(running.Handed(rows, gates), x, *args, **kwargs), None

    def normed(self, rows: Tensor) -> Tensor:
        """Rows as the block shows tokens to its attention."""
        return first_norm(self).forward(rows) if self.norm_first else rows

    def _upstream(self, handed: running.Handed, x: Tensor, *args, **kwargs) -> Tensor:
        """Upstream's block, whose attention finds what is handed over."""
        running.hand_over(handed)
        try:
            return super().forward(x, *args, **kwargs)
        finally:
            running.hand_over(None)


class TokenBlock(PromptedBlock):
    """A ViT's block whose prompts are tokens behind the others: what it makes of them goes on (VPT-Shallow)."""

    def _run(self, given: Given, x: Tensor, *args, **kwargs) -> tuple[Tensor, Tensor | None]:
        prompts, number = given.prompts, self.place.number
        rows = prompts.read(number, x, given).to(x.dtype)
        handed = running.Handed(None, behind=rows.shape[1], missing=prompts.missing(number))
        out = self._upstream(handed, torch.cat([x, rows], 1), *args, **kwargs)
        # Not [:, x.shape[1]:], of whose length inductor knows nothing.
        kept = out.narrow(1, x.shape[1], rows.shape[1])
        return out[:, :x.shape[1]], prompts.leave(number, kept)


class WindowTokenBlock(PromptedBlock):
    """A Swin's block whose attention has the prompts in each window; the rest of the block is theirs, too."""

    def _run(self, given: Given, x: Tensor, *args, **kwargs) -> tuple[Tensor, Tensor | None]:
        prompts, number = given.prompts, self.place.number
        rows = prompts.read(number, x, given).to(x.dtype)
        seen = rows if given.folded is not None else self.normed(rows)  # of folded ones only the shape counts
        handed = running.Handed(seen, wants_outputs=True, missing=prompts.missing(number), projected=given.folded)
        out = self._upstream(handed, x, *args, **kwargs)
        assert handed.outputs is not None
        rest = _feed_forward if self.norm_first else _feed_forward_then_norm
        return out, prompts.leave(number, rest(self, rows, handed.outputs))


# The second half of a block in eval mode, in which frozen ones are: no drop path. ``mlp`` is timm's name.


def _feed_forward(block: Any, rows: Tensor, outputs: Tensor) -> Tensor:
    x = rows + outputs
    mlp = getattr(block, 'mlp', None)
    rows = block.norm2.forward(x)
    return block.ffn.forward(rows, identity=x) if mlp is None else x + mlp.forward(rows)


def _feed_forward_then_norm(block: Any, rows: Tensor, outputs: Tensor) -> Tensor:
    x = rows + block.norm1.forward(outputs)
    mlp = getattr(block, 'mlp', None)
    x = x + block.norm2.forward((block.ffn if mlp is None else mlp).forward(x))
    return block.norm3.forward(x) if getattr(block, 'extra_norm', False) else x  # MMPretrain's largest


def first_norm(block: Any) -> nn.Module:
    """A block's norm at its attention."""
    return block.norm1 if hasattr(block, 'norm1') else block.ln1  # the latter is what MMPretrain's DeiT-3 has alone
