"""What a prompted backbone's attention looks at: the weights of tokens and prompts, block by block."""
from typing import Callable, List, NamedTuple, Optional, Tuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmprovpt.attention import PromptedMMCVAttention, PromptedMultiheadAttention


class BlockWeights(NamedTuple):
    """Attention of one block; B' counts samples, or windows of samples.

    Attributes:
        attention: The module.
        weights: (B', heads, N, N + n), N tokens and then n prompts; each row sums to 1.
        values: (B', heads, N + n, d), what the weights weigh.
    """
    attention: nn.Module
    weights: Tensor
    values: Tensor


class Looks(NamedTuple):
    """What one image's queries look at, mean over the heads.

    Attributes:
        prompts: Per block (n,) weight of each prompt, in the order of their numbers.
        patches: Per block (h, w) weight of each patch in the class token's attention, or empty without one.
    """
    prompts: List[Tensor]
    patches: List[Tensor]


@torch.no_grad()
def look(backbone: nn.Module, image: Tensor) -> Looks:
    """Attention of the class token; without one (Swin), of all queries on average, and then no maps of patches.

    Args:
        backbone: A prompted one.
        image: (1, 3, H, W), preprocessed.
    """
    prompts, patches, grid = [], [], []
    has_class_token = any(getattr(module, 'cls_token', None) is not None for module in backbone.modules())

    def reduce(block: BlockWeights) -> None:
        tokens = block.weights.shape[2]
        extra = tokens - grid[0] * grid[1]  # class token, distillation token, registers
        if has_class_token and extra > 0:
            row = block.weights[0, :, 0].mean(0)
            patches.append(row[extra:tokens].reshape(grid))
        else:
            row = block.weights.mean((0, 1, 2))
        prompts.append(row[tokens:])

    embedding = next(module for module in backbone.modules() if isinstance(module, nn.Conv2d))
    handle = embedding.register_forward_hook(lambda module, args, output: grid.extend(output.shape[-2:]))
    try:
        visit_attention(backbone, image, reduce)
    finally:
        handle.remove()
    return Looks(prompts, patches)


@torch.no_grad()
def visit_attention(backbone: nn.Module, images: Tensor, visit: Callable[[BlockWeights], None]) -> None:
    """Run a backbone in eval mode and hand each block's weights to ``visit``, in the order of the blocks.

    One block's weights exist at a time: those of a dense model are large.

    Args:
        backbone: A prompted one.
        images: (B, 3, H, W), preprocessed.
        visit: Called once per block.

    Raises:
        ValueError: If the backbone has no prompts.
    """
    attentions = [module for module in backbone.modules() if hasattr(module, 'prompt_reader')]
    if not attentions:
        raise ValueError(f'{type(backbone).__name__} has no prompts that its attention reads: give it `prompts`, or '
                         'call inject_prompts (in a ViT, those of VPT-Shallow are tokens)')

    def record(module: nn.Module, args: tuple, kwargs: dict, output: Tensor) -> None:
        x = args[0] if args else next(kwargs[name] for name in ('x', 'query') if name in kwargs)
        mask = args[1] if len(args) > 1 else next((kwargs[n] for n in ('mask', 'attn_mask') if n in kwargs), None)
        visit(BlockWeights(module, *attention_weights(module, x, mask)))

    handles = [module.register_forward_hook(record, with_kwargs=True) for module in attentions]
    training = backbone.training
    try:
        backbone.eval()
        backbone(images)
    finally:
        for handle in handles:
            handle.remove()
        backbone.train(training)


def attention_weights(attention: nn.Module, x: Tensor, mask: Optional[Tensor] = None) -> Tuple[Tensor, Tensor]:
    """Weights and values of an attention of :data:`~mmprovpt.prompts.inject.SUPPORTED`, as it reads its prompts now.

    Args:
        attention: With a ``prompt_reader``.
        x: (B', N, C), its input.
        mask: (windows, N, N), Swin's shift mask, or None.

    Returns:
        See :class:`BlockWeights`.
    """
    inner = attention.attn if isinstance(attention, PromptedMMCVAttention) else attention
    rows = attention.prompt_reader.read()
    tokens = x.shape[1]
    if rows is not None:
        # Rows (n, C) are shared by all, (B, n, C) by all windows of a sample.
        rows = rows if rows.dim() == 3 else rows[None]
        x = torch.cat([x, rows.repeat_interleave(len(x) // len(rows), 0)], 1)
    if inner is attention:
        qkv = attention.qkv(x)
    else:
        qkv = F.linear(x, inner.in_proj_weight, inner.in_proj_bias)
    q, k, v = qkv.unflatten(-1, (3, inner.num_heads, -1)).permute(2, 0, 3, 1, 4)
    q, k = getattr(attention, 'q_norm', nn.Identity())(q[:, :, :tokens]), getattr(attention, 'k_norm', nn.Identity())(k)
    bias = _bias(attention, tokens, mask, len(x))
    logits = q @ k.transpose(-1, -2) * _scale(attention, q.shape[-1]) + F.pad(bias, (0, k.shape[2] - tokens)).to(q)
    return logits.softmax(-1), v


def _bias(attention: nn.Module, tokens: int, mask: Optional[Tensor], batch_size: int) -> Tensor:
    """Position bias and mask, to broadcast to (B', heads, N, N)."""
    if not hasattr(attention, 'relative_position_bias_table'):
        if mask is not None:
            raise ValueError(f'{type(attention).__name__} was given a mask, which only windows have')
        return torch.zeros(1, 1, tokens, tokens)
    table = attention.relative_position_bias_table[attention.relative_position_index.flatten()]
    bias = table.unflatten(0, (tokens, tokens)).permute(2, 0, 1)[None]
    if mask is not None:
        bias = (bias + mask[:, None]).repeat(batch_size // len(mask), 1, 1, 1)
    return bias


def _scale(attention: nn.Module, size: int) -> float:
    if isinstance(attention, PromptedMultiheadAttention):
        return attention._logit_scale()  # has a quirk of upstream's
    return size**-0.5 if isinstance(attention, PromptedMMCVAttention) else attention.scale
