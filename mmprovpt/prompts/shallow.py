"""VPT-Shallow's prompts: tokens of the first block, whose outputs are kept (001 Eq. iii, iv; METHOD § 1)."""
from typing import Optional

import torch
from torch import Tensor, nn

from mmprovpt.registry import MODELS

from .cross_stage import merge
from .static import StaticPrompts


@MODELS.register_module()
class ShallowPrompts(StaticPrompts):
    """Prompts of VPT-Shallow (Jia et al. 2022), for any ViT or Swin.

    They enter the first block, and what a block makes of them goes into the next one: they are queries, too, and pass
    the MLP. The number of tokens outside of blocks stays as it is. In Swin each window has a sample's prompts, whose
    outputs are averaged over its windows, and between stages the frozen patch merging maps them, four copies of each.

    Args:
        num_tokens: How many, all in the first block.
        widths: Width C_i of each of the L blocks.
        **kwargs: Of :class:`StaticPrompts`, but for ``carry`` and ``num_spare``: they do not relocate.

    Raises:
        TypeError, ValueError: If an argument is of the wrong type or range.
    """

    keeps_outputs = True

    def __init__(self, num_tokens: int, widths: list, **kwargs) -> None:
        if type(num_tokens) is not int:
            raise TypeError(f'num_tokens={num_tokens!r}, but it must be an int: prompts of VPT-Shallow all enter the '
                            'first block (StaticPrompts take a list of counts)')
        for name in ('carry', 'num_spare'):
            if name in kwargs:
                raise ValueError(f'{name}={kwargs[name]!r}, but prompts of VPT-Shallow do not relocate')
        super().__init__([num_tokens] + [0] * (len(widths) - 1), widths=widths, **kwargs)
        # What each block was given, for gradient checkpointing, which runs blocks again.
        self._given = [None] * len(widths)

    def enter(self, block: int, tokens: Tensor) -> Optional[Tensor]:
        """The prompts that a block is given in this forward.

        Args:
            block: Its number; all before it have run.
            tokens: (B, ...), its input.

        Returns:
            (B, n, C), or ``None`` without prompts.
        """
        if block == 0:
            rows = super().read(0, tokens)
            self._given[0] = rows if rows is None else rows.expand(tokens.shape[0], *rows.shape[-2:]).to(tokens)
        return self._given[block]

    def leave(self, block: int, prompts: Tensor) -> None:
        """Note what a block has made of its prompts, (B, n, C)."""
        if block + 1 == self.num_blocks:
            if not torch.is_grad_enabled():
                self._given = [None] * self.num_blocks
            return
        if self.widths[block + 1] != self.widths[block]:
            prompts = merge(self._mergings[sorted(set(self.widths)).index(self.widths[block])], prompts)
        self._given[block + 1] = prompts

    def read(self, block: int, tokens: Tensor) -> Optional[Tensor]:
        """(B, n, C), what :meth:`enter` returned, before the block's norm; or ``None``."""
        return self._given[block]

    def depends_on_input(self, block: int) -> bool:
        """True: even the first block reads what :meth:`enter` has noted."""
        return True

    def relocate(self, prompt: int, block: int) -> bool:
        """Refused.

        Raises:
            ValueError: Always.
        """
        raise ValueError('prompts of VPT-Shallow do not relocate: all enter the first block and pass every other')

    def __getstate__(self):
        return dict(super().__getstate__(), _given=[None] * self.num_blocks)


class KeepingBlock:
    """In front of a ViT's block: prompts are tokens behind the others, whatever the block does with tokens."""

    def forward(self, x: Tensor, *args, **kwargs) -> Tensor:
        """(B, N, C) to (B, N, C), as upstream."""
        pool, block = self.kept.pool, self.kept.block
        prompts = pool.enter(block, x)
        if prompts is None:
            return super().forward(x, *args, **kwargs)
        out = super().forward(torch.cat([x, prompts], 1), *args, **kwargs)
        pool.leave(block, out[:, x.shape[1]:])
        return out[:, :x.shape[1]]


class KeepingWindowBlock:
    """In front of a Swin's block, whose attention has the prompts in each window; the rest is theirs, too."""

    def forward(self, x: Tensor, *args, **kwargs) -> Tensor:
        """(B, N, C) or (B, h, w, C) to the same, as upstream."""
        pool, block = self.kept.pool, self.kept.block
        prompts = pool.enter(block, x)
        out = super().forward(x, *args, **kwargs)
        if prompts is not None:
            outputs, self.kept.outputs = self.kept.outputs, None
            pool.leave(block, _feed_forward(self, prompts + outputs))
        return out


def _feed_forward(block: nn.Module, x: Tensor) -> Tensor:
    """The second half of a block in eval mode, in which frozen ones are: no drop path."""
    mlp = getattr(block, 'mlp', None)  # timm's name
    return block.ffn(block.norm2(x), identity=x) if mlp is None else x + mlp(block.norm2(x))
