"""Blocks and attention of a backbone with several sets of prompts: the forward around them says which are read."""
from typing import Any

from torch import Tensor

from . import running
from .block import Given, PromptedBlock, TokenBlock, WindowTokenBlock


class ChoosingBlock(PromptedBlock):
    """Reads what this forward reads: one set, different ones in the samples, or none."""

    def _run(self, given: Given, x: Tensor, *args, **kwargs) -> tuple[Tensor, Tensor | None]:
        prompts, number = given.prompts, self.place.number
        if not prompts.sets:
            return self._upstream(running.Handed(None), x, *args, **kwargs), None
        if prompts.keeps_outputs:
            return super()._run(given, x, *args, **kwargs)
        if not prompts.is_mixed:
            return PromptedBlock._run(self, given, x, *args, **kwargs)
        rows, pick, missing = prompts.table(number, x, given)
        handed = running.Handed(self.normed(rows), pick=pick, missing=missing)
        return self._upstream(handed, x, *args, **kwargs), None


class ChoosingTokenBlock(ChoosingBlock, TokenBlock):
    """A ViT's."""


class ChoosingWindowBlock(ChoosingBlock, WindowTokenBlock):
    """A Swin's."""


class ChoosingAttention:
    """In front of a prompted attention: where no rows are handed over, upstream's own, bit for bit."""

    def forward(self, *args, **kwargs) -> Any:
        """As upstream."""
        handed = running.handed()
        if handed is not None and not handed.has_rows and handed.missing is None and (
                handed.behind is None or not self.has_positions):  # type: ignore[attr-defined]
            return type(self).upstream.upstream.forward(self, *args, **kwargs)  # type: ignore[attr-defined]
        return super().forward(*args, **kwargs)  # type: ignore[misc]
