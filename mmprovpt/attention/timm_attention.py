"""Plain self-attention of timm, one fused projection."""
from typing import Any

from torch import Tensor, nn

from .base import PromptedAttention


class PromptedTIMMAttention(PromptedAttention):
    """In front of ``timm.layers.attention.Attention`` (ViT, DeiT, DINOv2, CLIP, ...)."""

    q_norm: Any
    k_norm: Any
    gate: Any

    def forward(self, x: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False) -> Tensor:
        """(B, N, C) to (B, N, C); the block's prompts are additional keys and values, never masked.

        Raises:
            ValueError: If ``is_causal``: prompts have no place in an order of tokens.
        """
        refuse_causal(is_causal)
        q, k, v = self.split(self.project(x))
        return self.finish(x, self.norm_queries(q), self.norm_keys(k), v, attn_mask)

    def finish(self, x: Tensor, q: Tensor, k: Tensor, v: Tensor, attn_mask: Tensor | None) -> Tensor:
        """All from the logits on; x (B, N, C) is what upstream's attention was given."""
        out = self.attend(q, k, v, self.scale, attn_mask, self.attn_drop.p if self.training else 0.)
        # 'norm' (scale_norm) and 'gate' exist in some versions only.
        out = getattr(self, 'norm', nn.Identity())(out.transpose(1, 2).flatten(2))
        if getattr(self, 'gate', None) is not None:
            out = out * self.gate(x).sigmoid()
        return self.proj_drop(self.proj(out))

    def norm_queries(self, q: Tensor) -> Tensor:
        """See the base class."""
        return self.q_norm(q)

    def norm_keys(self, k: Tensor) -> Tensor:
        """See the base class."""
        return self.k_norm(k)


def refuse_causal(is_causal: bool) -> None:
    """Raise where tokens are in an order."""
    if is_causal:
        raise ValueError('is_causal=True with prompts: prompted attention is for image tokens, which have no '
                         'order. Call the backbone without a causal mask.')
