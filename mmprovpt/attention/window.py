"""Window attention of Swin: ``WindowMSA`` of mmdet, mmseg and mmpretrain, ``WindowAttention`` of timm."""
from typing import Optional

import torch
from torch import Tensor

from .reader import prompt_keys_values, split_heads


class PromptedWindowAttention:
    """In front of any of the four: they share names, layout and mathematics."""

    def forward(self, x: Tensor, mask: Optional[Tensor] = None) -> Tensor:
        """Attention within windows, to which the block's prompts are additional keys and values.

        Relative position bias and shift mask are 0 on the prompts' columns.

        Args:
            x: (B * windows, N, C), N = tokens of a window, batch-major.
            mask: (windows, N, N), added to the logits, or None.

        Returns:
            (B * windows, N, C).
        """
        prompts = self.prompt_reader.read()
        if prompts is None:
            return super().forward(x, mask)
        num_tokens = x.shape[1]
        q, k, v = split_heads(self.qkv(x), self.num_heads)
        prompt_k, prompt_v = prompt_keys_values(
            prompts, self.qkv.weight, self.qkv.bias, self.num_heads, len(x))
        q = q * self.scale
        logits = q @ k.transpose(-2, -1) + self._position_bias(num_tokens)
        if mask is not None:
            logits = (logits.unflatten(0, (-1, len(mask))) + mask[:, None]).flatten(0, 1)
        logits = torch.cat([logits, q @ prompt_k.transpose(-2, -1)], -1)
        attn = self.attn_drop(logits.softmax(-1))
        # Two products instead of one spare a copy of all values.
        out = attn[..., :num_tokens] @ v + attn[..., num_tokens:] @ prompt_v
        return self.proj_drop(self.proj(out.transpose(1, 2).flatten(2)))

    def _position_bias(self, num_tokens: int) -> Tensor:
        """(num_heads, N, N)."""
        bias = self.relative_position_bias_table[self.relative_position_index.flatten()]
        return bias.unflatten(0, (num_tokens, num_tokens)).permute(2, 0, 1)
