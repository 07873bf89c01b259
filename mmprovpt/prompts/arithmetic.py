"""Sets of prompts, averaged and compared (docs/how-to/several_tasks.md)."""
from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from mmprovpt.errors import ConfigError

from .prompt_set import PromptSet


class Comparison(NamedTuple):
    """How unlike two sets are.

    Attributes:
        distances: Per block, in [0, 2]: of each row of either set, 1 - cosine to the most similar row of the other, on
            average; NaN where one of them has none. A block reads a row through its norm, so lengths do not count.
        counts: (2, L) int64, prompts per block of either.
    """
    distances: Tensor
    counts: Tensor


def average_prompts(sets: Sequence[PromptSet], weights: Sequence[float] | None = None) -> dict[str, Tensor]:
    """The weighted mean of sets, as a state dict for a further one of the same options.

    Row by row, so the sets should have been trained from one start; that their prompts lie alike is checked.

    Args:
        sets: One or more.
        weights: As many finite numbers, whose sum is 1; None: equal ones.

    Raises:
        ConfigError: They differ in form, options, shapes or owners, or the weights are no weights.
    """
    weights = [1 / max(len(sets), 1)] * len(sets) if weights is None else list(weights)
    if not sets or len(weights) != len(sets) or not abs(sum(weights) - 1) < 1e-6:
        raise ConfigError(f'weights={weights!r}, but there must be one for each of {len(sets)} sets, of sum 1')
    states = [each.state_dict() for each in sets]
    for number, each in enumerate(sets):
        if _kind(each) != _kind(sets[0]) or any(
                states[number][key].shape != value.shape for key, value in states[0].items()):
            raise ConfigError(f'set {number} has another form, other options or number of prompts than the first: '
                              'only like sets can be averaged')
        if not torch.equal(each.block_index.cpu(), sets[0].block_index.cpu()):
            raise ConfigError(f'prompts of set {number} lie in other blocks than those of the first: the mean of rows '
                              'that different blocks read means nothing')
    first = states[0]
    for key, value in first.items():
        if value.is_floating_point():
            first[key] = sum(weight * state[key].to(value.device) for weight, state in zip(weights, states))
    return first


def interpolate_prompts(one: PromptSet, other: PromptSet, share: float) -> dict[str, Tensor]:
    """(1 - share) · one + share · other; see :func:`average_prompts`."""
    return average_prompts([one, other], [1 - share, share])


@torch.no_grad()
def compare_prompts(one: PromptSet, other: PromptSet) -> Comparison:
    """Where two sets differ, block by block.

    Raises:
        ConfigError: They are of other forms or backbones, so that their rows are not comparable.
    """
    if _kind(one) != _kind(other):
        raise ConfigError(f'{type(one).__name__} and {type(other).__name__}, rows of lengths {one.widths} and '
                          f'{other.widths}, cannot be compared: they must be of one form, with like options, for one '
                          'backbone')
    distances = []
    for block in range(one.num_blocks):
        rows = [F.normalize(each.rows(block).float().cpu(), dim=1) for each in (one, other)]
        apart = 1 - rows[0] @ rows[1].T
        nearest = torch.cat([apart.min(1)[0], apart.min(0)[0]]) if apart.numel() else apart.new_full((1, ), torch.nan)
        distances.append(nearest.mean())
    return Comparison(torch.stack(distances), torch.stack([one.distribution.cpu(), other.distribution.cpu()]))


def _kind(prompts: PromptSet) -> tuple:
    """What says what the numbers of a row mean."""
    options = ('widths', 'static_blocks', 'grid_size', 'kernel_size', '_projector')
    return type(prompts), *(getattr(prompts, name, None) for name in options)
