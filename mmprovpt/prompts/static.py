"""VPT's prompts: learned rows, the same for every input."""
import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from mmprovpt.attention.block import Given
from mmprovpt.errors import ConfigError

from .prompt_set import FORMS, PromptSet


@FORMS.register
class StaticPrompts(PromptSet):
    """Prompts of VPT-Deep (Jia et al. 2022; docs/method/deep_prompts.md).

    Args:
        num_tokens: See :class:`PromptSet`.
        dropout: Probability in [0, 1) of a prompt's number to be dropped, drawn for each sample anew.
        patch_fan_in: 3 · patch², inputs of the patch embedding; prompts start uniform in
            ±sqrt(6 / (patch_fan_in + C_i)). ``inject_prompts`` reads it off the backbone.
        **kwargs: Of :class:`PromptSet`.
    """

    def __init__(self, num_tokens: int | Sequence[int], patch_fan_in: int, dropout: float = 0.1,
                 **kwargs) -> None:
        super().__init__(num_tokens, **kwargs)
        self.dropout = check_probability('dropout', dropout)
        self.patch_fan_in = patch_fan_in
        PromptSet.reset_parameters(self)  # the rows; a subclass fills what else it has

    def initial_row(self, block: int) -> Tensor:
        """(C_block,) float32, uniform in ±sqrt(6 / (patch_fan_in + C))."""
        bound = math.sqrt(6 / (self.patch_fan_in + self.widths[block]))
        return torch.empty(self.widths[block]).uniform_(-bound, bound)

    def read(self, block: int, x: Tensor, given: Given) -> Tensor:
        """The prompts of a block before its norm, whatever its input.

        Returns:
            (B, n, C) in training with dropout, which differs from sample to sample; else (n, C).
        """
        rows = self.rows_of(block, given.owned)
        if self.training and self.dropout > 0:
            rows = F.dropout(rows.expand(x.shape[0], *rows.shape), self.dropout)
        return rows


def check_probability(name: str, value: float) -> float:
    """The value, or an error that says that it is no probability in [0, 1)."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value < 1:
        raise ConfigError(f'{name}={value!r}, but it must be a number in [0, 1)')
    return float(value)
