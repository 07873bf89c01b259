"""Window attention of Swin: ``WindowMSA`` of mmdet, mmseg and mmpretrain, ``WindowAttention`` of timm."""

from torch import Tensor

from . import running
from .base import PromptedAttention


class PromptedWindowAttention(PromptedAttention):
    """In front of any of the four: they share names, layout and mathematics."""

    relative_position_bias_table: Tensor
    relative_position_index: Tensor

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Attention within windows, to which the block's prompts are additional keys and values.

        Relative position bias and shift mask are 0 for prompts. If the block wants to know what becomes of its prompts,
        they are queries in each window, too, and it gets the mean of a sample's windows.

        Args:
            x: (B * windows, N, C), N = tokens of a window, sample by sample.
            mask: (windows, N, N), added to the logits, or None.

        Returns:
            (B * windows, N, C).
        """
        q, k, v = self.split(self.project(x))
        q, k = self.norm_queries(q), self.norm_keys(k)
        bias = self._position_bias(x.shape[1])
        if mask is not None:
            bias = bias + mask[:, None]
        # Fused: upstream's written-out softmax would keep all logits for backward.
        out = self.attend(q, k, v, self.scale, bias.to(q), self.attn_drop.p if self.training else 0.)
        out = self.proj_drop(self.proj(out.transpose(1, 2).flatten(2)))
        handed = running.handed()
        assert handed is not None  # or ``attend`` would have raised
        if handed.wants_outputs:
            assert handed.rows is not None
            out, kept = out[:, :x.shape[1]], out.narrow(1, x.shape[1], handed.rows.shape[1])
            handed.outputs = kept.unflatten(0, (handed.rows.shape[0], -1)).mean(1)
        return out

    def _position_bias(self, num_tokens: int) -> Tensor:
        """(1, num_heads, N, N)."""
        bias = self.relative_position_bias_table[self.relative_position_index.flatten()]
        return bias.reshape(num_tokens, num_tokens, self.num_heads).permute(2, 0, 1)[None]
