"""Window attention of Swin: ``WindowMSA`` of mmdet, mmseg and mmpretrain, ``WindowAttention`` of timm."""
from typing import Optional

import torch
import torch.nn.functional as F
from torch import Tensor

from .reader import prompt_keys_values, prompt_queries, split_heads


class PromptedWindowAttention:
    """In front of any of the four: they share names, layout and mathematics."""

    def forward(self, x: Tensor, mask: Optional[Tensor] = None) -> Tensor:
        """Attention within windows, to which the block's prompts are additional keys and values.

        Relative position bias and shift mask are 0 on the prompts' columns. If their outputs are kept, prompts are
        queries in each window, too, and the mean of a sample's windows goes to the reader.

        Args:
            x: (B * windows, N, C), N = tokens of a window, batch-major.
            mask: (windows, N, N), added to the logits, or None.

        Returns:
            (B * windows, N, C).
        """
        prompts = self.prompt_reader.read()
        if prompts is None:
            return super().forward(x, mask)
        q, k, v = split_heads(self.qkv(x), self.num_heads)
        prompt_k, prompt_v = prompt_keys_values(
            prompts, self.qkv.weight, self.qkv.bias, self.num_heads, x.shape[0])
        bias = self._position_bias(x.shape[1])
        if mask is not None:
            bias = (bias + mask[:, None]).repeat(x.shape[0] // mask.shape[0], 1, 1, 1)
        if self.prompt_reader.pool.keeps_outputs:
            prompt_q = prompt_queries(prompts, self.qkv.weight, self.qkv.bias, self.num_heads, x.shape[0])
            q, bias = torch.cat([q, prompt_q], 2), F.pad(bias, (0, 0, 0, prompt_q.shape[2]))
        # Fused: upstream's written-out softmax would keep all logits for backward.
        out = self.prompt_reader.attend(
            q, k, v, prompt_k, prompt_v, self.scale, bias.to(q), self.attn_drop.p if self.training else 0.)
        out = self.proj_drop(self.proj(out.transpose(1, 2).flatten(2)))
        if self.prompt_reader.pool.keeps_outputs:
            out, kept = out[:, :x.shape[1]], out[:, x.shape[1]:]
            self.prompt_reader.outputs = kept.unflatten(0, (prompts.shape[0], -1)).mean(1)
        return out

    def _position_bias(self, num_tokens: int) -> Tensor:
        """(1, num_heads, N, N)."""
        bias = self.relative_position_bias_table[self.relative_position_index.flatten()]
        return bias.unflatten(0, (num_tokens, num_tokens)).permute(2, 0, 1)[None]
