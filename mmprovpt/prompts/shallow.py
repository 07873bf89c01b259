"""VPT-Shallow's prompts: tokens of the first block, whose outputs are kept (docs/method/shallow.md)."""

from torch import Tensor

from mmprovpt.attention.block import Given
from mmprovpt.errors import ConfigError

from .cross_stage import check_mergings, merge
from .prompt_set import FORMS
from .static import StaticPrompts


@FORMS.register
class ShallowPrompts(StaticPrompts):
    """Prompts of VPT-Shallow (Jia et al. 2022), for any ViT or Swin.

    They enter the first block, and what a block makes of them goes into the next one: they are queries, too, and pass
    the MLP. The number of tokens outside of blocks stays as it is. In Swin each window has a sample's prompts, whose
    outputs are averaged over its windows, and between stages the frozen patch merging maps them, four copies of each.

    Args:
        num_tokens: How many, all in the first block.
        widths: Width C_i of each of the L blocks.
        **kwargs: Of :class:`StaticPrompts`, but for ``cross_stage``: they do not relocate.

    Raises:
        ConfigError: If an argument is of the wrong type or range.
    """

    keeps_outputs = True

    def __init__(self, num_tokens: int, widths: list, **kwargs) -> None:
        if type(num_tokens) is not int:
            raise ConfigError(f'num_tokens={num_tokens!r}, but it must be an int: prompts of VPT-Shallow all enter the '
                              'first block (StaticPrompts take a list of counts)')
        if 'cross_stage' in kwargs:
            raise ConfigError(f'cross_stage={kwargs["cross_stage"]!r}, but prompts of VPT-Shallow do not relocate')
        check_mergings(widths, kwargs.get('mergings', ()))
        super().__init__([num_tokens] + [0] * (len(widths) - 1), widths=widths, **kwargs)

    def read(self, block: int, x: Tensor, given: Given) -> Tensor:
        """(B, n, C) what a block gets of its prompts, before its norm.

        Raises:
            RuntimeError: The block is not the first, and what the one before it made of them is not known.
        """
        if block == 0:
            rows = super().read(0, x, given)
            return rows.expand(x.shape[0], *rows.shape[-2:])
        if given.kept is None:
            raise RuntimeError(f'Prompts of VPT-Shallow pass all blocks, but block {block} does not know what the one '
                               'before it made of them: it was called outside of a forward of the backbone, or run '
                               'again by a checkpointing that is not ours. Use with_cp=True in the config, or '
                               'backbone.set_grad_checkpointing()')
        return given.kept

    def leave(self, block: int, outputs: Tensor) -> Tensor | None:
        """(B, n, C') the outputs (B, n, C) of a block's prompts, as the next block gets them; None after the last."""
        if block + 1 == self.num_blocks:
            return None
        if self.widths[block + 1] == self.widths[block]:
            return outputs
        return merge(self.mergings[sorted(set(self.widths)).index(self.widths[block])], outputs)

    def depends_on_input(self, block: int) -> bool:
        """True but for the first block."""
        return block > 0

    def relocate(self, prompt: int, block: int) -> bool:
        """Refused.

        Raises:
            ValueError: Always.
        """
        raise ValueError('prompts of VPT-Shallow do not relocate: all enter the first block and pass every other')
