"""Plain self-attention with one fused qkv projection: mmpretrain ``MultiheadAttention``, timm ``Attention``."""
from typing import Optional

import torch
from torch import Tensor

from .reader import prompt_keys_values, split_heads


class PromptedMultiheadAttention:
    """In front of ``mmpretrain.models.utils.MultiheadAttention`` (ViT, DeiT, DINOv2, MAE, ...)."""

    def forward(self, x: Tensor) -> Tensor:
        """(B, N, C) to (B, N, C); the block's prompts are additional keys and values."""
        prompts = self.prompt_reader.read()
        if prompts is None:
            return super().forward(x)
        q, k, v = split_heads(self.qkv(x), self.num_heads)
        prompt_k, prompt_v = prompt_keys_values(
            prompts, self.qkv.weight, self.qkv.bias, self.num_heads, x.shape[0])
        out = self.prompt_reader.attend(
            q, k, v, prompt_k, prompt_v, self._logit_scale(), dropout_p=self.attn_drop if self.training else 0.)
        out = self.proj(out.transpose(1, 2).flatten(2))
        out = self.out_drop(self.gamma1(self.proj_drop(out)))
        return v.squeeze(1) + out if self.v_shortcut else out

    def _logit_scale(self) -> float:
        # With qk_scale given, upstream divides by the scale that it means to multiply by.
        given = getattr(self.scaled_dot_product_attention, 'keywords', {}).get('scale')
        return self.head_dims**-0.5 if given is None else 1 / given


class PromptedTIMMAttention:
    """In front of ``timm.layers.Attention`` (ViT, DeiT, DINOv2, CLIP, ...)."""

    def forward(self, x: Tensor, attn_mask: Optional[Tensor] = None, is_causal: bool = False) -> Tensor:
        """(B, N, C) to (B, N, C); the block's prompts are additional keys and values, never masked.

        Raises:
            ValueError: If ``is_causal``: prompts have no place in an order of tokens.
        """
        prompts = self.prompt_reader.read()
        if prompts is None:
            # Versions of timm differ in what else forward takes.
            given = dict(attn_mask=attn_mask, is_causal=is_causal or None)
            return super().forward(x, **{k: v for k, v in given.items() if v is not None})
        if is_causal:
            raise ValueError('is_causal=True with prompts: prompted attention is for image tokens, which have no '
                             'order. Call the backbone without a causal mask.')
        q, k, v = split_heads(self.qkv(x), self.num_heads)
        prompt_k, prompt_v = prompt_keys_values(
            prompts, self.qkv.weight, self.qkv.bias, self.num_heads, x.shape[0])
        out = self.prompt_reader.attend(
            self.q_norm(q), self.k_norm(k), v, self.k_norm(prompt_k), prompt_v, self.scale, attn_mask,
            self.attn_drop.p if self.training else 0.)
        # 'norm' (scale_norm) and 'gate' exist in some versions only.
        out = getattr(self, 'norm', torch.nn.Identity())(out.transpose(1, 2).flatten(2))
        if getattr(self, 'gate', None) is not None:
            out = out * self.gate(x).sigmoid()
        return self.proj_drop(self.proj(out))
