"""VPT's prompts: learned rows, the same for every input."""
import math
from typing import Optional, Sequence, Union

import torch
import torch.nn.functional as F
from torch import Tensor

from mmprovpt.registry import MODELS

from .prompt_set import PromptSet


@MODELS.register_module()
class StaticPrompts(PromptSet):
    """Prompts of VPT-Deep (Jia et al. 2022; 001 Eq. v).

    Args:
        num_tokens: See :class:`PromptSet`.
        dropout: Probability in [0, 1) of a prompt's number to be dropped, drawn for each sample anew.
        patch_fan_in: 3 · patch², inputs of the patch embedding; prompts start uniform in
            ±sqrt(6 / (patch_fan_in + C_i)). ``inject_prompts`` reads it off the backbone.
        **kwargs: Of :class:`PromptSet`.
    """

    def __init__(self, num_tokens: Union[int, Sequence[int]], patch_fan_in: int, dropout: float = 0.1,
                 **kwargs) -> None:
        super().__init__(num_tokens, **kwargs)
        if not 0 <= dropout < 1:
            raise ValueError(f'dropout={dropout}, but it must be in [0, 1)')
        self.dropout = dropout
        self.patch_fan_in = patch_fan_in
        for prompt, block in enumerate(self.block_index.tolist()):
            # A spare prompt is as long as the widest block, which may cut it.
            row = self.initial_row(block if block >= 0 else self.widths.index(max(self.widths)))
            self.tokens.data[prompt, :len(row)] = row

    def initial_row(self, block: int) -> Tensor:
        """(C_block,) float32, uniform in ±sqrt(6 / (patch_fan_in + C))."""
        bound = math.sqrt(6 / (self.patch_fan_in + self.widths[block]))
        return torch.empty(self.widths[block]).uniform_(-bound, bound)

    def read(self, block: int, tokens: Tensor) -> Optional[Tensor]:
        """The prompts of a block before its norm, whatever the tokens.

        Returns:
            ``None`` if the block owns no prompt; (B, n, C) in training with dropout, which differs from sample
            to sample; else (n, C).
        """
        rows = self.rows(block)
        if rows is not None and self.training and self.dropout > 0:
            rows = F.dropout(rows.expand(tokens.shape[0], *rows.shape), self.dropout)
        return rows
