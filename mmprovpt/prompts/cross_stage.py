"""What becomes of a prompt that moves between blocks of different widths, Swin's stages (docs/method/swin.md).

A block reads a prompt through LayerNorm, to which only its direction matters. Its length matters to the optimizer
alone (the longer, the smaller the steps), so a prompt that crosses keeps its root mean square.
"""
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from mmprovpt.errors import ConfigError


def project(prompts: Any, row: Tensor, block: int) -> Tensor:
    """Map a row through the frozen patch mergings, or through their least-squares inverses.

    Args:
        prompts: The :class:`PromptSet`.
        row: (C,), the prompt in its old width.
        block: The new one, of another stage.

    Returns:
        (C',) C' being its width.
    """
    stages = sorted(set(prompts.widths))
    here, there = stages.index(len(row)), stages.index(prompts.widths[block])
    new = row
    if here < there:
        for merging in prompts.mergings[here:there]:
            new = merge(merging, new)
    else:
        for merging in reversed(prompts.mergings[there:here]):
            new = _unmerge(merging, new)
    return new * (row.square().mean() / new.square().mean().clamp_min(1e-12)).sqrt()


def reinit(prompts: Any, row: Tensor, block: int) -> Tensor:
    """(C',) a fresh draw; the old row is forgotten."""
    return prompts.initial_row(block).to(row)


CROSS_STAGE = dict(project=project, reinit=reinit)


def check_mergings(widths: Sequence[int], mergings: Sequence[Any]) -> None:
    """Check that there is a patch merging between each two consecutive widths.

    Raises:
        ConfigError: There is not, so that ``'project'`` has no way from one to the other.
    """
    sizes = sorted(set(widths))
    steps = [(merging.reduction.in_features // 4, merging.reduction.out_features) for merging in mergings]
    if steps != list(zip(sizes, sizes[1:])):
        raise ConfigError(f"cross_stage='project' maps a prompt by the patch mergings between blocks of widths {sizes}"
                          f", but this backbone merges {steps or 'nothing'}: set cross_stage='reinit'")


def _copies(merging: Any, rows: Tensor) -> Tensor:
    """(..., C) to (..., 4C): four equal neighbours, in the order in which this merging lines up their channels."""
    # OpenMMLab unfolds (channel by channel), Swin's authors and timm concatenate (neighbour by neighbour).
    unfolds = isinstance(getattr(merging, 'sampler', None), nn.Unfold)
    return rows.repeat_interleave(4, -1) if unfolds else torch.cat([rows] * 4, -1)


def merge(merging: Any, rows: Tensor) -> Tensor:
    """(..., C) to (..., C'): what a patch merging makes of four equal neighbours."""
    copies = _copies(merging, rows)
    # .forward: other people's hooks on them see tokens alone.
    if _norms_after(merging):
        return merging.norm.forward(merging.reduction.forward(copies))
    return merging.reduction.forward(copies if merging.norm is None else merging.norm.forward(copies))


def _norms_after(merging: Any) -> bool:
    """Whether a patch merging norms what its reduction gives, as SwinV2's do, and not what it is given."""
    return merging.norm is not None and merging.norm.weight.numel() == merging.reduction.out_features


def _unmerge(merging: Any, row: Tensor) -> Tensor:
    """The n (its scale open) whose merging comes closest to ``row``, by least squares."""
    weight = merging.reduction.weight.float().cpu()
    columns = torch.stack([_copies(merging, unit) for unit in torch.eye(weight.shape[1] // 4)], 1)
    inverse = _before_norm if _norms_after(merging) else _behind_norm
    matrix, target = inverse(merging, weight, columns, row.float().cpu())
    # gelsd takes a matrix of any rank (without biases a column below is 0).
    solution = torch.linalg.lstsq(matrix, target[:, None], driver='gelsd').solution
    return solution[:columns.shape[1], 0].to(row)


def _before_norm(merging: Any, weight: Tensor, columns: Tensor, row: Tensor) -> tuple[Tensor, Tensor]:
    """With A the reduction, γ and β the norm's, merging is (γ (A n − m) + s β) / s, hence = row in (n, m, s)."""
    scale, shift = merging.norm.weight.float().cpu()[:, None], merging.norm.bias.float().cpu()[:, None]
    return torch.cat([scale * (weight @ columns), -scale, shift], 1), row


def _behind_norm(merging: Any, weight: Tensor, columns: Tensor, row: Tensor) -> tuple[Tensor, Tensor]:
    """For the standardised n whose merging comes closest to ``row`` in the eyes of a LayerNorm.

    On standardised inputs, merging's own LayerNorm is only its affine part, so merging is A n + c. A block reads
    ``row`` up to mean m and scale, hence the least-squares problem s (A n + c) + m = row in (s n, s, m).
    """
    scale, offset = torch.ones_like(weight[0]), torch.zeros_like(weight[:, 0])
    if merging.norm is not None:
        scale = merging.norm.weight.float().cpu()
        offset = weight @ merging.norm.bias.float().cpu()
    if merging.reduction.bias is not None:
        offset = offset + merging.reduction.bias.float().cpu()
    return torch.cat([(weight * scale) @ columns, offset[:, None], torch.ones(len(weight), 1)], 1), row
