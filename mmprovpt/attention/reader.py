"""What every attention class shares: how it gets the rows of its block, and turns them into keys and values."""
import weakref
from typing import Optional, Tuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class PromptReader:
    """Reads the prompts of one block for its attention.

    It is no module: the attention holds it as a plain attribute, so neither the pool nor the norm appears a
    second time among parameters and state-dict keys.

    Args:
        pool: The :class:`PromptSet` of the backbone.
        block: Number of the block, from 0.
        norm: The norm that the block applies to its tokens before attention; prompts pass the same one.
    """

    def __init__(self, pool: nn.Module, block: int, norm: nn.Module) -> None:
        self.pool = pool
        self.block = block
        self.norm = norm
        self.batch_size = None
        self._tokens = None
        # What attention has made of the prompts, (B, n, C), for a block that keeps it.
        self.outputs: Optional[Tensor] = None
        # Window attention sees windows, not samples; the block's norm sees samples, also when gradient
        # checkpointing runs the block again. It is therefore the norm that tells the block's input.
        norm.register_forward_pre_hook(self._observe)

    def _observe(self, norm: nn.Module, args: Tuple[Tensor]) -> None:
        # The block holds its input while it runs; no reader shall hold it longer.
        self._tokens, self.batch_size = weakref.ref(args[0]), args[0].shape[0]

    def __getstate__(self):
        return dict(self.__dict__, _tokens=None, outputs=None)

    def read(self) -> Optional[Tensor]:
        """The block's prompts as its attention reads them, normalised.

        Returns:
            ``None`` if the block owns no prompt; (n, C) if all samples share the prompts; (B, n, C) if each
            has its own (with prompt dropout, in training; prompts that depend on the input).
        """
        rows = self.pool.read(self.block, self._tokens())
        if rows is None:
            return None
        # .forward: our own reading is not to be observed as the block's input.
        rows = self.norm.forward(rows)
        if self.pool.observer is not None:
            self.pool.observer.watch_rows(self.block, rows, self.norm)
        return rows

    def attend(self, q: Tensor, k: Tensor, v: Tensor, prompt_k: Tensor, prompt_v: Tensor, scale: float,
               mask: Optional[Tensor] = None, dropout_p: float = 0.) -> Tensor:
        """Attention to tokens and prompts: softmax(scale q [k; prompt_k]ᵀ + mask) [v; prompt_v].

        Args:
            q, k, v: (B', num_heads, N, d); B' counts samples, or windows of samples, batch-major.
            prompt_k, prompt_v: (B', num_heads, n, d).
            scale: Of the logits.
            mask: (..., N, N), boolean (True: may be read) or added to the logits. Prompts are never masked.
            dropout_p: Of the attention weights.

        Returns:
            (B', num_heads, N, d).
        """
        if mask is not None:
            mask = F.pad(mask, (0, prompt_k.shape[2]), value=mask.dtype == torch.bool)
        gates = None
        if self.pool.observer is not None:
            gates = self.pool.observer.open_gates(self.block, self.batch_size, q)
        size = q.shape[-1]
        if gates is not None:
            # The gates join the logits as one more channel, 1 / scale in q, 0 in k, b in prompt_k. Kernels want
            # the number of channels to be a multiple of 8, and the same in v.
            q = F.pad(torch.cat([q, torch.full_like(q[..., :1], 1 / scale)], -1), (0, 7))
            k, v, prompt_v = (F.pad(x, (0, 8)) for x in (k, v, prompt_v))
            gates = gates.repeat_interleave(len(q) // len(gates), 0).to(prompt_k)
            gates = gates[:, None, :, None].expand(*prompt_k.shape[:-1], 1)
            prompt_k = F.pad(torch.cat([prompt_k, gates], -1), (0, 7))
        out = F.scaled_dot_product_attention(
            q, torch.cat([k, prompt_k], 2), torch.cat([v, prompt_v], 2),
            attn_mask=mask, dropout_p=dropout_p, scale=scale)
        return out[..., :size]


def split_heads(qkv: Tensor, num_heads: int) -> Tuple[Tensor, Tensor, Tensor]:
    """(B, N, 3C), as a fused projection gives it, to q, k, v of shape (B, num_heads, N, C / num_heads)."""
    return qkv.unflatten(-1, (3, num_heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)


def prompt_queries(rows: Tensor, weight: Tensor, bias: Optional[Tensor], num_heads: int,
                   batch_size: int) -> Tensor:
    """(batch_size, num_heads, n, C' / num_heads), queries of rows (B, n, C); see :func:`prompt_keys_values`."""
    size = weight.shape[0] // 3
    q = F.linear(rows, weight[:size], None if bias is None else bias[:size])
    return q.unflatten(-1, (num_heads, -1)).transpose(1, 2).repeat_interleave(batch_size // q.shape[0], 0)


def prompt_keys_values(rows: Tensor, weight: Tensor, bias: Optional[Tensor], num_heads: int,
                       batch_size: int) -> Tuple[Tensor, Tensor]:
    """Keys and values of normalised prompts (METHOD: k = [W_k LN(x); W_k LN(P)], v alike).

    Args:
        rows: (n, C), shared by all samples, or (B, n, C).
        weight: (3C', C), a fused projection, in the order q, k, v.
        bias: (3C',) or None.
        num_heads: Number of heads.
        batch_size: First dimension of the attention's input: B, or B times the number of windows, sample by
            sample (batch-major).

    Returns:
        Two tensors (batch_size, num_heads, n, C' / num_heads).
    """
    size = weight.shape[0] // 3
    kv = F.linear(rows, weight[size:], None if bias is None else bias[size:])
    kv = kv.unflatten(-1, (2, num_heads, -1))
    if kv.dim() == 4:
        kv = kv.expand(batch_size, *kv.shape)
    elif kv.shape[0] != batch_size:
        kv = kv.repeat_interleave(batch_size // kv.shape[0], 0)
    return kv.permute(2, 0, 3, 1, 4).unbind(0)
