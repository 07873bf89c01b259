"""VAPT's prompts: functions of what the block is given (docs/method/vapt.md)."""
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmprovpt.attention.block import Given
from mmprovpt.errors import ConfigError

from .prompt_set import FORMS
from .static import StaticPrompts, check_probability


@FORMS.register
class AdaptivePrompts(StaticPrompts):
    r"""Prompts of VAPT, for any ViT or Swin and any input size. In ``static_blocks`` they are those of VPT.

    With X the block's patch tokens behind a LayerNorm of the prompts' own, as a map (C, h, w): one kernel for all
    channels, a linear map over positions (a prompt's row and bias), and a projector for all blocks,
    :math:`p = z + W_2\,\mathrm{ReLU}(W_1 z)`. Prompts enter the block as those of VPT do, through its norm.

    A row of ``tokens`` is a prompt's row of the linear map, (grid − kernel + 1)² weights and a bias, which is what
    relocation moves; kernel, norm and projector stay with the block. Maps of another size than ``grid_size`` are
    first averaged (or repeated) to it (docs/method/vapt.md); so rows are as long in all blocks of all backbones.

    Args:
        num_tokens: See :class:`PromptSet`.
        patch_fan_in, dropout: See :class:`StaticPrompts`, for blocks in ``static_blocks``.
        widths: Width C_i of each of the L blocks.
        static_blocks: Numbers of blocks whose prompts are rows of VPT. A prompt that moves in or out starts anew.
        grid_size: Side of the map that rows are defined on, in tokens; 14 is that of 224 px in patches of 16.
        kernel_size: Side of the kernel, no padding.
        hidden_dims: Of the projector.
        shared_projector: One for all blocks of a width; False: one for each.
        channel_dropout: Probability in [0, 1) of a channel of the map behind the kernel to be dropped.
        projector_dropout: Of a hidden number of the projector.
        **kwargs: Of :class:`PromptSet`, but for ``cross_stage``.

    Attributes:
        kernels (nn.Parameter): (L, kernel, kernel).
        norms (nn.Parameter): (2, L, max C_i), scale and shift.
        down, up (nn.Parameter): (S, hidden, max C_i) and (S, max C_i, hidden), of S projectors. What is beyond a
            block's width is 0 and not read.

    Raises:
        ConfigError: If an argument is of the wrong type, length or range.
    """

    needs_grid = True

    def __init__(self, num_tokens: int | Sequence[int], patch_fan_in: int, widths: Sequence[int],
                 static_blocks: Sequence[int] = (0, ), grid_size: int = 14, kernel_size: int = 2,
                 hidden_dims: int = 8, shared_projector: bool = True, dropout: float = 0.1,
                 channel_dropout: float = 0.1, projector_dropout: float = 0.1, **kwargs) -> None:
        if 'cross_stage' in kwargs:
            raise ConfigError(f'cross_stage={kwargs["cross_stage"]!r}, but rows of adaptive prompts are equally long '
                              'in all blocks')
        self.embed_dims = [int(width) for width in widths]
        self.static_blocks = _check_blocks(static_blocks, len(self.embed_dims))
        for name, value in dict(grid_size=grid_size, kernel_size=kernel_size, hidden_dims=hidden_dims).items():
            if type(value) is not int or value < 1:
                raise ConfigError(f'{name}={value!r}, but it must be an int >= 1')
        if kernel_size > grid_size:
            raise ConfigError(f'kernel_size={kernel_size} is more than grid_size={grid_size}: no position is left')
        positions = (grid_size - kernel_size + 1)**2
        rows = [width if block in self.static_blocks else positions + 1 for block, width in enumerate(self.embed_dims)]
        # Rows never cross widths: they are as long everywhere, or start anew.
        super().__init__(num_tokens, patch_fan_in, dropout, widths=rows, cross_stage='reinit', **kwargs)
        self.dropouts = {name: check_probability(name, value) for name, value in dict(
            channel_dropout=channel_dropout, projector_dropout=projector_dropout).items()}
        self.grid_size, self.kernel_size, self.hidden_dims = grid_size, kernel_size, hidden_dims
        sizes = sorted(set(self.embed_dims))
        self._projector = [sizes.index(width) if shared_projector else block
                           for block, width in enumerate(self.embed_dims)]
        self._stage = [sizes.index(width) for width in self.embed_dims]
        widest, count = max(self.embed_dims), max(self._projector) + 1
        self.kernels = nn.Parameter(torch.zeros(self.num_blocks, kernel_size, kernel_size))
        self.norms = nn.Parameter(torch.zeros(2, self.num_blocks, widest))
        self.down = nn.Parameter(torch.zeros(count, hidden_dims, widest))
        self.up = nn.Parameter(torch.zeros(count, widest, hidden_dims))
        self._reset_blocks()
        # DDP waits for each parameter that wants a gradient, so none does that no block reads.
        is_read = self.tokens.requires_grad and any(map(self.depends_on_input, range(self.num_blocks)))
        for parameter in self._beside_rows():
            parameter.requires_grad_(is_read)

    def reset_parameters(self) -> None:
        """See the base class."""
        super().reset_parameters()
        self._reset_blocks()

    @torch.no_grad()
    def _reset_blocks(self) -> None:
        """What blocks have beside rows, as its authors start it."""
        self.kernels.copy_(torch.randn(self.kernels.shape))
        for parameter in (self.norms, self.down, self.up):
            parameter.zero_()
        for block, width in enumerate(self.embed_dims):
            self.norms[0, block, :width] = 1
            number = self._projector[block]
            for weight in (self.down[number, :, :width], self.up[number, :width]):
                bound = weight.shape[1]**-0.5  # of nn.Linear
                weight.copy_(torch.empty(weight.shape).uniform_(-bound, bound))

    def _beside_rows(self) -> tuple[nn.Parameter, ...]:
        return self.kernels, self.norms, self.down, self.up

    def initial_row(self, block: int) -> Tensor:
        """(C_block,) float32: zeros, as its authors'; in a static block as VPT's."""
        return super().initial_row(block) if block in self.static_blocks else torch.zeros(self.widths[block])

    def alike(self, block: int, other: int) -> bool:
        """Whether both are static, of one width, or both are not."""
        return (block in self.static_blocks) == (other in self.static_blocks) and super().alike(block, other)

    def arriving_row(self, prompt: int, source: int, block: int) -> Tensor:
        """(C_block,) anew: a prompt becomes static, or is no longer."""
        return self.initial_row(block)

    @property
    def num_active(self) -> int:
        """Trainable numbers that a forward reads: rows, and what blocks that are not static have besides."""
        adaptive = [block for block in range(self.num_blocks) if block not in self.static_blocks]
        projectors = {self._projector[block]: self.embed_dims[block] for block in adaptive}
        shared = sum(self.kernel_size**2 + 2 * self.embed_dims[block] for block in adaptive)
        return super().num_active + shared + 2 * self.down.shape[1] * sum(projectors.values())

    def depends_on_input(self, block: int) -> bool:
        """True but for static blocks."""
        return block not in self.static_blocks

    def read(self, block: int, x: Tensor, given: Given) -> Tensor:
        """The prompts of a block before its norm.

        Args:
            block: Its number.
            x: (B, N, C), the block's input, patches last; or (B, h, w, C).
            given: Owned prompts, and the grid of patches.

        Returns:
            (B, n, C); of a static block (n, C) without dropout.

        Raises:
            RuntimeError: The grid is not known.
            ValueError: The map is smaller than the kernel, or has not as many tokens as patches.
        """
        if block in self.static_blocks:
            return super().read(block, x, given)
        rows = self.rows_of(block, given.owned)
        width, number = self.embed_dims[block], self._projector[block]
        patches = self._patches(block, x, given.grid)
        # Kernel and linear map are one linear map over positions, (n, grid²): no map is convolved.
        size = self.grid_size - self.kernel_size + 1
        weight = F.conv_transpose2d(rows[:, None, :-1].unflatten(-1, (size, size)), self.kernels[None, None, block])
        prompts = self._drop('channel_dropout', weight.flatten(1) @ patches, channelwise=True) + rows[:, -1:]
        hidden = self._drop('projector_dropout', F.linear(prompts, self.down[number, :, :width]).relu())
        return prompts + F.linear(hidden, self.up[number, :width])

    def _patches(self, block: int, x: Tensor, grid: tuple[int, int] | None) -> Tensor:
        """(B, grid², C) the patch tokens behind the prompts' norm, on the grid that rows are defined on."""
        if grid is None:
            raise RuntimeError(f'Adaptive prompts of block {block} must know how many patches there are, but it was '
                               'called outside of a forward of the backbone, or run again by a checkpointing that is '
                               'not ours: use with_cp=True in the config, or backbone.set_grad_checkpointing()')
        height, width = (-(-size // 2**self._stage[block]) for size in grid)
        tokens = x.flatten(1, -2).to(self.norms.dtype)  # frozen weights may be of lower precision
        if height * width > tokens.shape[1] or self._stage[-1] and height * width != tokens.shape[1]:
            raise ValueError(f'block {block} has {tokens.shape[1]} tokens, which are not {height} x {width} patches')
        if min(height, width) < self.kernel_size:
            raise ValueError(f'block {block} has {height} x {width} patches, fewer than the kernel of adaptive prompts '
                             f'({self.kernel_size}): give larger images or a smaller kernel_size')
        patches = F.layer_norm(tokens[:, tokens.shape[1] - height * width:], tokens.shape[-1:],
                               *self.norms[:, block, :tokens.shape[-1]])
        if (height, width) == (self.grid_size, self.grid_size):
            return patches
        maps = patches.transpose(1, 2).unflatten(-1, (height, width))
        return F.adaptive_avg_pool2d(maps, self.grid_size).flatten(2).transpose(1, 2)

    def _drop(self, name: str, x: Tensor, channelwise: bool = False) -> Tensor:
        """Dropout of x (B, n, C); ``channelwise``, of a channel in all prompts of a sample."""
        p = self.dropouts[name] if self.training else 0.
        return x * F.dropout(torch.ones_like(x[:, :1]), p) if channelwise and p else F.dropout(x, p)


def _check_blocks(blocks: Sequence[int], num_blocks: int) -> tuple[int, ...]:
    if not isinstance(blocks, (list, tuple)) or any(type(block) is not int for block in blocks):
        raise ConfigError(f'static_blocks={blocks!r}, but it must be a list of numbers of blocks')
    beyond = [block for block in blocks if not 0 <= block < num_blocks]
    if beyond:
        raise ConfigError(f'static_blocks={list(blocks)}, but the backbone has the blocks 0 to {num_blocks - 1}')
    return tuple(blocks)
