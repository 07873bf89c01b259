"""Attention that reads prompts, written once for all classes of attention."""
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from mmprovpt.errors import ConfigError
from mmprovpt.older_torch import is_compiling

from . import running


class PromptedAttention:
    """In front of an attention's class: the rows that its block hands over are additional keys and values.

    A subclass is for one class of upstream. It has a ``forward`` of upstream's signature, which projects tokens with
    :meth:`split`, calls :meth:`attend`, and does with the result what upstream does; and, where that differs, how rows
    are projected. Nothing else is needed; ``docs/contributing/attention.md`` has a whole example.
    """

    place: running.Place
    # Whether logits depend on where a token stands (a rotation, a bias per pair): it is told which tokens are prompts.
    has_positions = False

    # What upstream's classes have.
    num_heads: int
    scale: float
    training: bool
    qkv: Any
    attn_drop: Any
    proj: Any
    proj_drop: Any

    def split(self, qkv: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(B, N, 3C), as a fused projection gives it, to q, k, v of shape (B, num_heads, N, C / num_heads)."""
        q, k, v = self._parts(qkv).permute(2, 0, 3, 1, 4).unbind(0)
        return q, k, v

    def _parts(self, qkv: Tensor) -> Tensor:
        """(B, N, 3C) to (B, N, 3, num_heads, C / num_heads). Not by ``unflatten``, which ONNX has from opset 13 on."""
        return qkv.reshape(*qkv.shape[:-1], 3, self.num_heads, qkv.shape[-1] // (3 * self.num_heads))

    def project(self, x: Tensor) -> Tensor:
        """(B, N, C) tokens to (B, N, 3C)."""
        return self.qkv(x)

    def project_rows(self, rows: Tensor) -> Tensor:
        """(B, n, C) rows behind the norm to (B, n, 3C).

        What wraps the projection (LoRA, quantization) serves prompts as well. ``.forward``: other people's hooks on it
        see tokens alone.
        """
        return self.qkv.forward(rows)

    def norm_keys(self, k: Tensor) -> Tensor:
        """Keys (B, num_heads, n, d) as upstream normalises them; most do not."""
        return k

    def attend(self, q: Tensor, k: Tensor, v: Tensor, scale: float, bias: Tensor | None = None,
               dropout_p: float = 0.) -> Tensor:
        """Attention to tokens and prompts: softmax(scale · q [k; k_P]ᵀ + bias) [v; v_P].

        Args:
            q, k, v: (B', num_heads, N, d); B' counts samples, or windows of samples, sample by sample.
            scale: Of the logits.
            bias: (..., N, N), boolean (True: may be read) or added to the logits. It is 0 for prompts. One of shape
                (W, num_heads, N, N), 1 < W < B', is for the W windows of each sample.
            dropout_p: Of the attention weights.

        Where prompts are the last n of the tokens (VPT-Shallow), q, k and v have them, and bias has not.

        Returns:
            (B', num_heads, N, d); N + n where the block wants to know what becomes of its prompts.

        Raises:
            RuntimeError: The block has handed nothing over.
        """
        handed = running.handed()
        if handed is None or not (handed.has_rows or handed.behind is not None):
            raise RuntimeError(f'{type(self).__name__} of block {self.place.number} reads prompts, but no block has '
                               'handed any to it. Call the block, not its attention; if something has replaced or '
                               'wrapped the block (model surgery, another library), inject prompts after that')
        size = q.shape[-1]
        if handed.has_rows:
            q, k, v, bias = self._beside_tokens(handed, q, k, v, scale, bias)
        elif bias is not None and handed.behind is not None:
            bias = F.pad(bias, (0, handed.behind, 0, handed.behind), value=bias.dtype == torch.bool)
        if handed.missing is not None:
            bias = _without_missing(handed.missing, bias, q.shape[0], k.shape[2])
        watcher = running.watcher()
        if watcher is None and not _is_written_out(q, k, bias):
            return _fused(q, k, v, scale, bias, dropout_p)[..., :size]
        weights = _weights(q, k, scale, bias)
        if watcher is not None:
            # Queries of prompts are nobody's to see where prompts are tokens.
            seen = weights.shape[2] - (0 if handed.behind is None else handed.behind)
            watcher(self, weights[:, :, :seen], v[..., :size])
        return F.dropout(weights, dropout_p) @ v[..., :size]

    def _beside_tokens(self, handed: running.Handed, q: Tensor, k: Tensor, v: Tensor, scale: float,
                       bias: Tensor | None) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        """Queries, keys, values and bias of tokens and of the rows that were handed over."""
        prompt_q, prompt_k, prompt_v = self._prompts(handed, v)
        if prompt_q is not None:
            bias = None if bias is None else F.pad(bias, (0, 0, 0, prompt_q.shape[2]), value=bias.dtype == torch.bool)
            q = torch.cat([q, prompt_q], 2)
        if bias is not None:
            bias = F.pad(bias, (0, prompt_k.shape[2]), value=bias.dtype == torch.bool)
        if handed.gates is not None:
            # The gates join the logits as one more channel, 1 / scale in q, 0 in k, b in prompt_k. Kernels want
            # the number of channels to be a multiple of 8, and the same in v.
            q = F.pad(torch.cat([q, torch.full_like(q[..., :1], 1 / scale)], -1), (0, 7))
            k, v, prompt_v = (F.pad(x, (0, 8)) for x in (k, v, prompt_v))
            gates = _per_window(handed.gates, q.shape[0]).to(prompt_k)
            gates = gates[:, None, :, None].expand(*prompt_k.shape[:-1], 1)
            prompt_k = F.pad(torch.cat([prompt_k, gates], -1), (0, 7))
        # Kept for backward: a copy of the queries, and not with them the projection that they are a part of.
        q = q.contiguous() if torch.is_grad_enabled() else q
        return q, torch.cat([k, prompt_k], 2), torch.cat([v, prompt_v], 2), bias

    def _prompts(self, handed: running.Handed, values: Tensor) -> running.Projected:
        """Queries (or None), keys and values (B', num_heads, n, d) of the prompts, beside values of as many windows."""
        if handed.projected is None:
            q, k, v = self.project_prompts(handed)
        else:
            q, k, v = handed.projected
            if v.dtype != values.dtype:
                raise ConfigError(f'the prompts were folded in {v.dtype}, but this forward computes in {values.dtype}: '
                                  'cast the model, or enter autocast, before mmprovpt.folded(model)')
            q = None if q is None else q.transpose(0, 1)[None]
            k, v = k.transpose(0, 1)[None], v.transpose(0, 1)[None]
        batch_size = values.shape[0]
        return None if q is None else _per_window(q, batch_size), _per_window(k, batch_size), _per_window(v, batch_size)

    def project_prompts(self, handed: running.Handed) -> running.Projected:
        """Queries (None unless wanted), keys and values (1 or B, num_heads, n, d) of the rows that were handed over."""
        rows = handed.rows
        assert rows is not None
        rows = rows if rows.dim() == 3 else rows[None]
        parts = self._parts(self.project_rows(rows))
        if not handed.wants_outputs:
            parts = parts[:, :, 1:]  # inductor cannot handle the zero gradient of queries that nobody reads
        if handed.pick is not None:
            parts = parts[0].index_select(0, handed.pick.flatten()).unflatten(0, handed.pick.shape)
        separate = parts.permute(2, 0, 3, 1, 4).unbind(0)
        q = self.norm_queries(separate[0]) if handed.wants_outputs else None
        return q, self.norm_keys(separate[-2]), separate[-1]

    def norm_queries(self, q: Tensor) -> Tensor:
        """Queries (B, num_heads, n, d) as upstream normalises them; most do not."""
        return q


def _per_window(x: Tensor, batch_size: int) -> Tensor:
    """(1 or B, ...) to (batch_size, ...), each sample as often as it has windows."""
    if x.shape[0] == 1:
        return x.expand(batch_size, *x.shape[1:])
    return x if x.shape[0] == batch_size else x.repeat_interleave(batch_size // x.shape[0], 0)


def _is_written_out(q: Tensor, k: Tensor, bias: Tensor | None) -> bool:
    """Whether attention takes its products and its softmax one by one, and not PyTorch's fused kernel.

    So it is for PyTorch's older ONNX exporter, which has no fused attention below opset 14; compiled for CPUs with a
    bias, for which inductor generates code that fails where the number of keys is free; and on CPUs in bfloat16, where
    the fused kernel takes 1.6 to 4 times as long, forward and backward, up to some 200 tokens
    (docs/evidence/performance.md); beyond that its memory counts.
    """
    if torch.jit.is_tracing() and torch.onnx.is_in_onnx_export():
        return True
    if q.device.type != 'cpu':
        return False
    return (bias is not None and is_compiling()) or (
        q.dtype == torch.bfloat16 and q.shape[2] <= 256 and k.shape[2] <= 512)


def _fused(q: Tensor, k: Tensor, v: Tensor, scale: float, bias: Tensor | None, dropout_p: float) -> Tensor:
    """(B', num_heads, N, d). Windows of a sample go to the heads, so that no sample has a copy of their bias."""
    windows = 1 if bias is None or bias.dim() < 4 else bias.shape[0]
    if bias is None or windows in (1, q.shape[0]):
        return F.scaled_dot_product_attention(q, k, v, bias, dropout_p, scale=scale)
    q, k, v = (x.reshape(-1, windows * x.shape[1], *x.shape[2:]) for x in (q, k, v))
    out = F.scaled_dot_product_attention(q, k, v, bias.flatten(0, 1)[None], dropout_p, scale=scale)
    return out.reshape(-1, out.shape[1] // windows, *out.shape[2:])


def _per_image(bias: Tensor, batch_size: int) -> Tensor:
    """A bias for each window of a sample as often as there are samples; any other as it is."""
    if bias.dim() == 4 and 1 < bias.shape[0] < batch_size:
        return bias.repeat(batch_size // bias.shape[0], 1, 1, 1)
    return bias


def _without_missing(missing: Tensor, bias: Tensor | None, batch_size: int, num_keys: int) -> Tensor:
    """A bias (or None) that also hides the keys ``missing`` (B, n), the last n; without one boolean, (B', 1, 1, M)."""
    read = ~_per_window(missing, batch_size)[:, None, None]
    read = F.pad(read, (num_keys - read.shape[-1], 0), value=True)
    if bias is None:
        return read
    bias = _per_image(bias, batch_size)
    return bias & read if bias.dtype == torch.bool else bias.masked_fill(~read, float('-inf'))


def _weights(q: Tensor, k: Tensor, scale: float, bias: Tensor | None) -> Tensor:
    """(B', num_heads, N, N + n), each row sums to 1. Logits are float32 at least, as in fused kernels."""
    dtype = q.dtype
    if dtype in (torch.bfloat16, torch.float16):
        q, k = q.float(), k.float()
    logits = q * scale @ k.transpose(-1, -2)
    if bias is not None:
        bias = _per_image(bias, q.shape[0])
        logits = logits.masked_fill(~bias, float('-inf')) if bias.dtype == torch.bool else logits + bias
    return logits.softmax(-1).to(dtype)
