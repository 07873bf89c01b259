"""Self-attention with rotary positions: DINOv3, EVA, Perception Encoder, rotary ViTs of timm; EVA-02 of MMPretrain.

Prompts stand nowhere in the image: as prefix tokens (class token, registers), they take no rotation.
"""
import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .base import PromptedAttention
from .bias_in_parts import BiasInParts
from .timm_attention import PromptedTIMMAttention, refuse_causal


class PromptedRotaryAttention(BiasInParts, PromptedTIMMAttention):
    """In front of ``timm.layers.attention.AttentionRope`` and ``timm.models.eva.EvaAttention``."""

    has_positions = True
    num_prefix_tokens: int
    q_proj: Any
    k_proj: Any
    v_proj: Any

    def forward(self, x: Tensor, rope: Tensor | None = None,  # type: ignore[override]
                attn_mask: Tensor | None = None, is_causal: bool = False) -> Tensor:
        """(B, N, C) to (B, N, C); the block's prompts are additional keys and values, never masked or rotated.

        Args:
            x: Prefix tokens, then patches; behind them prompts, where those are tokens.
            rope: (..., patches, 2d), as upstream; None: no rotation.
            attn_mask: (..., N, N), or None.
            is_causal: Refused.

        Raises:
            ValueError: If ``is_causal``: prompts have no place in an order of tokens.
        """
        refuse_causal(is_causal)
        q, k, v = self.split(self.project(x))
        q, k = self.norm_queries(q), self.norm_keys(k)
        if rope is not None:
            q, k = self._rotate(q, rope).type_as(v), self._rotate(k, rope).type_as(v)
        return self.finish(x, q, k, v, attn_mask)

    def _rotate(self, x: Tensor, rope: Tensor) -> Tensor:
        from timm.layers import apply_rot_embed_cat
        half = dict(half=True) if getattr(self, 'rotate_half', False) else {}  # not in all versions
        return _rotate_patches(x, self.num_prefix_tokens, rope.shape[-2],
                               lambda patches: apply_rot_embed_cat(patches, rope, **half))

    def project(self, x: Tensor) -> Tensor:
        """See the base class; three projections are put together as one."""
        return super().project(x) if self.qkv is not None else self._join(
            self.q_proj(x), self.k_proj(x), self.v_proj(x))

    def project_rows(self, rows: Tensor) -> Tensor:
        """See the base class."""
        return super().project_rows(rows) if self.qkv is not None else self._join(
            self.q_proj.forward(rows), self.k_proj.forward(rows), self.v_proj.forward(rows))

    def _join(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        groups = getattr(self, 'num_kv_groups', 1)
        if groups > 1:  # several heads of queries share one of keys and values
            shape = *k.shape[:-1], self.num_heads // groups, k.shape[-1] * groups // self.num_heads
            k, v = (each.reshape(shape).repeat_interleave(groups, -2).flatten(-2) for each in (k, v))
        return torch.cat([q, k, v], -1)


class PromptedAttentionWithRoPE(PromptedAttention):
    """In front of ``mmpretrain.models.backbones.vit_eva02.AttentionWithRoPE``."""

    has_positions = True
    with_cls_token: bool
    rope: Any

    def forward(self, x: Tensor, patch_resolution: tuple[int, int]) -> Tensor:
        """(B, N, C) to (B, N, C); the block's prompts are additional keys and values, never rotated.

        Args:
            x: The class token, if there is one, then patches; behind them prompts, where those are tokens.
            patch_resolution: Height and width of the map of patches.
        """
        q, k, v = self.split(self.project(x))
        if self.rope is not None:
            q, k = self._rotate(q, patch_resolution).type_as(v), self._rotate(k, patch_resolution).type_as(v)
        out = self.attend(q, k, v, self.scale, None, self.attn_drop.p if self.training else 0.)
        return self.proj_drop(self.proj(out.transpose(1, 2).flatten(2)))

    def _rotate(self, x: Tensor, size: tuple[int, int]) -> Tensor:
        rope = self.rope
        if tuple(size) != tuple(rope.patch_resolution):  # it would keep those of this size, for all forwards
            rope = copy.copy(rope)
            rope._buffers = dict(rope._buffers)
        return _rotate_patches(x, int(self.with_cls_token), size[0] * size[1],
                               lambda patches: rope.forward(patches, size))


def _rotate_patches(x: Tensor, first: int, count: int, rotate: Callable[[Tensor], Tensor]) -> Tensor:
    """(B, num_heads, N, d) with ``count`` tokens rotated, from ``first`` on."""
    # Not [:, :, first + count:], of whose length inductor knows nothing.
    rest = x.narrow(2, first + count, x.shape[2] - first - count)
    return torch.cat([x[:, :, :first], rotate(x[:, :, first:first + count]), rest], 2)
