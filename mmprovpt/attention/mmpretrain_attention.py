"""Plain self-attention of MMPretrain, one fused projection."""
from typing import Any

from torch import Tensor

from .base import PromptedAttention


class PromptedMultiheadAttention(PromptedAttention):
    """In front of ``mmpretrain.models.utils.attention.MultiheadAttention`` (ViT, DeiT, DINOv2, MAE, ...)."""

    head_dims: int
    v_shortcut: bool
    scaled_dot_product_attention: Any
    gamma1: Any
    out_drop: Any

    def forward(self, x: Tensor) -> Tensor:
        """(B, N, C) to (B, N, C); the block's prompts are additional keys and values."""
        q, k, v = self.split(self.qkv(x))
        out = self.attend(q, k, v, self._logit_scale(), dropout_p=self.attn_drop if self.training else 0.)
        out = self.proj(out.transpose(1, 2).flatten(2))
        out = self.out_drop(self.gamma1(self.proj_drop(out)))
        return v.squeeze(1) + out if self.v_shortcut else out

    def _logit_scale(self) -> float:
        # With qk_scale given, upstream divides by the scale that it means to multiply by.
        given = getattr(self.scaled_dot_product_attention, 'keywords', {}).get('scale')
        return self.head_dims**-0.5 if given is None else 1 / given
