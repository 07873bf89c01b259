"""``mmcv.cnn.bricks.transformer.MultiheadAttention``, a wrapper of ``torch.nn.MultiheadAttention`` (mmseg ViT)."""
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from .base import PromptedAttention


class PromptedMMCVAttention(PromptedAttention):
    """In front of mmcv's wrapper, as mmseg's ViT calls it: self-attention, ``batch_first``, no mask."""

    batch_first: bool
    attn: Any
    dropout_layer: Any

    def project_rows(self, rows: Tensor) -> Tensor:
        """(B, n, C) to (B, n, 3C), by bare parameters: torch's module has no projection of its own to call.

        Raises:
            TypeError: Something has replaced torch's module, so that these parameters may not be all there is.
        """
        if type(self.attn) is not nn.MultiheadAttention:
            raise TypeError(f'{type(self).__name__} reads in_proj_weight of torch.nn.MultiheadAttention, but its attn '
                            f'is a {type(self.attn).__module__}.{type(self.attn).__name__} now, which may project '
                            'otherwise. LoRA and quantization of this attention: use the ViT of MMPretrain or timm')
        return self._project(rows)

    def _project(self, x: Tensor) -> Tensor:
        return F.linear(x, self.attn.in_proj_weight, self.attn.in_proj_bias)

    def forward(self, query: Tensor, *args, identity: Tensor | None = None, **kwargs) -> Tensor:
        """(B, N, C) to (B, N, C), the identity added; the block's prompts are additional keys and values.

        Raises:
            ValueError: If called with keys, values, positions or masks: no supported backbone does so.
        """
        given = [f'{len(args)} positional'] if args else []
        given += [name for name, value in kwargs.items() if value is not None]
        if given or not self.batch_first:
            raise ValueError(f'prompted {type(self).__name__} serves batch-first self-attention without masks and '
                             f'positions, but batch_first={self.batch_first} and it was given: {given}')
        q, k, v = self.split(self._project(query))
        out = self.attend(q, k, v, q.shape[-1]**-0.5, dropout_p=self.attn.dropout if self.attn.training else 0.)
        out = self.attn.out_proj(out.transpose(1, 2).flatten(2))
        identity = query if identity is None else identity
        return identity + self.dropout_layer(self.proj_drop(out))
