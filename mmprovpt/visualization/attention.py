"""What a prompted backbone's attention looks at: the weights of tokens and prompts, block by block."""
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from mmprovpt.attention import PromptedAttention, running
from mmprovpt.attention.support import full_name
from mmprovpt.backbones.inject import find_patch_embedding


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


class AttentionMaps(NamedTuple):
    """What one image's queries look at, mean over the heads.

    Attributes:
        prompts: Per block (n,) weight of each prompt, in the order of their numbers.
        patches: Per block (h, w) weight of each patch in the class token's attention, or empty without one.
    """
    prompts: list[Tensor]
    patches: list[Tensor]


@torch.no_grad()
def attention_maps(backbone: nn.Module, image: Tensor) -> AttentionMaps:
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

    embedding = next(filter(None, map(find_patch_embedding, backbone.modules())))
    handle = embedding.register_forward_hook(lambda module, args, output: grid.extend(output.shape[-2:]))
    try:
        visit_attention(backbone, image, reduce)
    finally:
        handle.remove()
    return AttentionMaps(prompts, patches)


@torch.no_grad()
def visit_attention(backbone: nn.Module, images: Tensor, visit: Callable[[BlockWeights], None]) -> None:
    """Run a backbone in eval mode and hand each block's weights to ``visit``, in the order of the blocks.

    The weights are those that the forward itself uses. One block's exist at a time: those of a dense model are large.

    Args:
        backbone: A prompted one.
        images: (B, 3, H, W), preprocessed.
        visit: Called once per block.

    Raises:
        ValueError: If no attention in the backbone reads prompts.
    """
    if not any(isinstance(module, PromptedAttention) for module in backbone.modules()):
        raise ValueError(f'{full_name(type(backbone))} has no prompts that its attention reads: give it `prompts`, or '
                         'call inject_prompts (in a ViT, those of VPT-Shallow are tokens)')
    training = backbone.training
    try:
        backbone.eval()
        with running.watching(lambda *seen: visit(BlockWeights(*seen))):
            backbone(images)
    finally:
        backbone.train(training)
