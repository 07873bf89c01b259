"""A fused projection whose bias is kept beside it in parts, without one for keys (BEiT, EVA, SwinV2)."""
from typing import Any

import torch
from torch import Tensor

from .base import PromptedAttention


class BiasInParts(PromptedAttention):
    """Upstream multiplies by ``qkv.weight`` and adds ``[q_bias, 0, v_bias]``; here ``qkv`` itself is called.

    So that what wraps it (LoRA, quantization) serves tokens and prompts alike.
    """

    q_bias: Any
    v_bias: Any

    def project(self, x: Tensor) -> Tensor:
        """See the base class."""
        return self._add_bias(super().project(x))

    def project_rows(self, rows: Tensor) -> Tensor:
        """See the base class."""
        return self._add_bias(super().project_rows(rows))

    def _add_bias(self, qkv: Tensor) -> Tensor:
        if getattr(self, 'q_bias', None) is None:
            return qkv
        keys = getattr(self, 'k_bias', None)  # timm has a buffer of zeros
        keys = torch.zeros_like(self.v_bias) if keys is None else keys
        return qkv + torch.cat([self.q_bias, keys, self.v_bias]).to(qkv.dtype)
