"""Window attention of SwinV2: ``WindowMSAV2`` of mmpretrain, ``WindowAttention`` of timm's ``swin_transformer_v2``."""
import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .bias_in_parts import BiasInParts
from .window import PromptedWindowAttention


class PromptedWindowAttentionV2(BiasInParts, PromptedWindowAttention):
    """In front of either: they share names, layout and mathematics.

    Logits are cosines times a learned scale of each head, of prompts as of tokens. The position bias is 16 σ(s), s that
    of a small network; prompts have no position, so that s is 0 for them and their bias 8, the middle of its range.
    """

    scale = 1.  # the learned ones are in the queries
    logit_scale: Tensor
    cpb_mlp: Any
    relative_coords_table: Tensor

    def norm_queries(self, q: Tensor) -> Tensor:
        """Queries (B, num_heads, n, d) of the length of the head's scale."""
        scale = self.logit_scale.clamp(max=math.log(100)).exp()
        return (_unit(q) * scale).to(q.dtype)

    def norm_keys(self, k: Tensor) -> Tensor:
        """Keys (B, num_heads, n, d) of length 1."""
        return _unit(k)

    def _position_bias(self, num_tokens: int) -> Tensor:
        """(1, num_heads, N, N), less 8, which is then 0 for prompts; softmax does not see the difference."""
        table = self.cpb_mlp(self.relative_coords_table).flatten(0, 2)
        bias = table[self.relative_position_index.flatten()].reshape(num_tokens, num_tokens, -1)
        return 16 * torch.sigmoid(bias.permute(2, 0, 1))[None] - 8


def _unit(x: Tensor) -> Tensor:
    """x / |x|; in float16, zeros (of padding) would become NaN."""
    return F.normalize(x.to(torch.promote_types(x.dtype, torch.float32)), dim=-1).to(x.dtype)
