"""``mmcv.cnn.bricks.transformer.MultiheadAttention``, a wrapper of ``torch.nn.MultiheadAttention`` (mmseg ViT)."""
from typing import Optional

import torch.nn.functional as F
from torch import Tensor

from .reader import prompt_keys_values, split_heads


class PromptedMMCVAttention:
    """In front of mmcv's wrapper, as mmseg's ViT calls it: self-attention, ``batch_first``, no mask."""

    def forward(self, query: Tensor, *args, identity: Optional[Tensor] = None, **kwargs) -> Tensor:
        """(B, N, C) to (B, N, C), the identity added; the block's prompts are additional keys and values.

        Raises:
            ValueError: If called with keys, values, positions or masks: no supported backbone does so.
        """
        prompts = self.prompt_reader.read()
        if prompts is None:
            return super().forward(query, *args, identity=identity, **kwargs)
        given = [f'{len(args)} positional'] if args else []
        given += [name for name, value in kwargs.items() if value is not None]
        if given or not self.batch_first:
            raise ValueError(f'prompted {type(self).__name__} serves batch-first self-attention without masks and '
                             f'positions, but batch_first={self.batch_first} and it was given: {given}')
        mha = self.attn
        q, k, v = split_heads(F.linear(query, mha.in_proj_weight, mha.in_proj_bias), mha.num_heads)
        prompt_k, prompt_v = prompt_keys_values(
            prompts, mha.in_proj_weight, mha.in_proj_bias, mha.num_heads, query.shape[0])
        out = self.prompt_reader.attend(
            q, k, v, prompt_k, prompt_v, q.shape[-1]**-0.5, dropout_p=mha.dropout if mha.training else 0.)
        out = mha.out_proj(out.transpose(1, 2).flatten(2))
        identity = query if identity is None else identity
        return identity + self.dropout_layer(self.proj_drop(out))
