"""Self-attention with a relative position bias: BEiT of timm, MMPretrain and MMSegmentation, and its MAE."""
from typing import Any

from torch import Tensor

from .bias_in_parts import BiasInParts


class PromptedBEiTAttention(BiasInParts):
    """In front of any of them: they share names, layout and mathematics. The bias is 0 for prompts."""

    has_positions = True
    relative_position_bias_table: Any
    relative_position_index: Any

    def forward(self, x: Tensor, rel_pos_bias: Tensor | None = None, *,
                shared_rel_pos_bias: Tensor | None = None) -> Tensor:
        """(B, N, C) to (B, N, C); the block's prompts are additional keys and values.

        Args:
            x: The class token, then patches; behind them prompts, where those are tokens.
            rel_pos_bias, shared_rel_pos_bias: (num_heads, N, N), MMPretrain's and timm's name of a bias that all
                blocks share; it is added to the block's own.
        """
        q, k, v = self.split(self.project(x))
        bias = rel_pos_bias if shared_rel_pos_bias is None else shared_rel_pos_bias
        if self.relative_position_bias_table is not None:
            own = self.relative_position_bias_table[self.relative_position_index]  # (N, N, num_heads)
            own = own.permute(2, 0, 1)
            bias = own if bias is None else bias + own
        out = self.attend(q, k, v, self.scale, None if bias is None else bias.to(q.dtype),
                          self.attn_drop.p if self.training else 0.)
        return self.proj_drop(self.proj(out.transpose(1, 2).flatten(2)))
