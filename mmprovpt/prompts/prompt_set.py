"""A prompt is a row; relocation changes which block owns it."""
from contextlib import contextmanager
from typing import List, Optional, Sequence, Tuple, Union

import torch
from torch import Tensor, nn

from .cross_stage import CARRIERS


class PromptSet(nn.Module):
    """All prompts of a backbone, and which block owns each.

    Relocation writes one integer of ``block_index`` (and, where the new block has another width, one row of
    ``tokens``). Shapes never change, so optimizer state, DDP buckets, EMA and checkpoints stay valid.

    Args:
        num_tokens: Prompts per block at the start, an int for all blocks or a list of one int per block.
        widths: Length C_i of a row in each of the L blocks: the block's width, where a row is the prompt itself.
        mergings: The backbone's patch mergings, one between each two consecutive widths (Swin), in order.
        carry: What becomes of a prompt that moves to a block of another width (METHOD § 6). ``'project'``:
            deeper, the frozen patch merging maps it; shallower, the least-squares inverse of that.
            ``'reinit'``: a fresh draw.
        num_spare: Further prompts that no block owns at the start, for methods that add some (001 App. C).

    Attributes:
        tokens (nn.Parameter): (N, max C_i), float32. Prompt k is its first C_i numbers, i its block.
        block_index (Tensor): (N,), int64, buffer, in [0, L); -1 for a spare prompt, which no block reads.

    Raises:
        TypeError, ValueError: If an argument is of the wrong type, length or range.
    """

    # Whether what a block makes of its prompts goes into the next one, as if they were tokens.
    keeps_outputs = False

    def __init__(self, num_tokens: Union[int, Sequence[int]], widths: Sequence[int],
                 mergings: Sequence[nn.Module] = (), carry: str = 'project', num_spare: int = 0) -> None:
        super().__init__()
        if type(num_spare) is not int or num_spare < 0:
            raise ValueError(f'num_spare={num_spare!r}, but it must be an int >= 0')
        if carry not in CARRIERS:
            raise ValueError(f'carry={carry!r}, but it must be one of {sorted(CARRIERS)}')
        self.widths = [int(width) for width in widths]
        self.carry = carry
        # In a tuple, they do not become children of the pool (and have no second name in the state dict).
        self._mergings = tuple(mergings)
        counts = torch.tensor(check_num_tokens(num_tokens, len(self.widths)))
        owned = torch.arange(len(counts)).repeat_interleave(counts)
        self.register_buffer('block_index', torch.cat([owned, torch.full((num_spare, ), -1)]))
        self.tokens = nn.Parameter(torch.zeros(len(self.block_index), max(self.widths)))
        # Who measures prompts in forward and backward, see mmprovpt.relocation; set from outside.
        self.observer = None
        self._hidden: Tuple[int, ...] = ()
        self._guest: Optional[int] = None
        self._guests: Optional[List[Tensor]] = None
        # A parameter that no forward uses would stall DDP.
        self.tokens.requires_grad_(len(self.tokens) > 0)
        self._index_rows()

    def initial_row(self, block: int) -> Tensor:
        """(C_block,) a fresh row for a block; subclasses say how it is drawn."""
        raise TypeError(f'{type(self).__name__} does not say how a prompt is drawn')

    def read(self, block: int, tokens: Tensor) -> Optional[Tensor]:
        """The prompts of a block before its norm, or ``None`` if it has none; subclasses say how.

        Args:
            block: Its number.
            tokens: (B, N, C) the block's input (timm's Swin: (B, h, w, C)), before its norm.
        """
        raise TypeError(f'{type(self).__name__} does not say how a block reads its prompts')

    def depends_on_input(self, block: int) -> bool:
        """Whether ``read`` does, in eval mode."""
        return False

    def observe_grid(self, patch_embedding: nn.Module, args: Tuple[Tensor], output: Tensor) -> None:
        """Forward hook of the convolution that embeds patches, for prompts that must know how many there are."""

    @property
    def num_blocks(self) -> int:
        """L, the number of blocks that can own prompts."""
        return len(self.widths)

    @property
    def distribution(self) -> Tensor:
        """(L,) int64, number of prompts in each block."""
        return torch.bincount(self.block_index[self.block_index >= 0], minlength=self.num_blocks)

    @property
    def num_active(self) -> int:
        """Trainable numbers that a forward really reads: Σ_k C_{d_k}, and what else there is (DESIGN: report those)."""
        return int((torch.tensor(self.widths) * self.distribution.cpu()).sum())

    def members(self, block: int) -> Optional[Tensor]:
        """(n,) int64, numbers of the prompts that a block reads, ascending; ``None`` if there are none."""
        return self._block_rows[block]

    def rows(self, block: int) -> Optional[Tensor]:
        """(n, C_block) the rows of ``members(block)``; ``None`` if there are none."""
        index = self._block_rows[block]
        if index is None:
            return None
        rows = self.tokens.index_select(0, index)[:, :self.widths[block]]
        return rows if self._guests is None else torch.cat([rows[:-1], self._guests[block][None]])

    @contextmanager
    def without(self, *prompts: int):
        """For the time of a ``with``, no block reads these prompts: their true removal (001 Eq. 5)."""
        self._hidden = prompts
        self._index_rows()
        try:
            yield
        finally:
            self._hidden = ()
            self._index_rows()

    @contextmanager
    def guest(self, prompt: int):
        """For the time of a ``with``, every block reads this prompt as its last row, mapped to its width."""
        # With 'reinit', what would arrive in another width is not drawn yet: the projected row stands for it.
        carried = {width: self._carried(prompt, self.widths.index(width), 'project') for width in set(self.widths)}
        self._guest = prompt
        self._guests = [carried[width].detach() for width in self.widths]
        self._index_rows()
        try:
            yield
        finally:
            self._guest = self._guests = None
            self._index_rows()

    @torch.no_grad()
    def relocate(self, prompt: int, block: int) -> bool:
        """Give a prompt to a block.

        Within one width its row keeps its value; across widths see ``carry``. A spare prompt, being as long as the
        widest block, is cut to its block's width.

        Args:
            prompt: Number of the prompt, in [0, N).
            block: Number of its new block, in [0, L); or -1, which takes it out and leaves it spare.

        Returns:
            Whether the row was rewritten because the widths differ, or it was spare. What an optimizer remembers
            of the row is then void and to be zeroed.

        Raises:
            IndexError: If there is no such prompt or block.
        """
        if not 0 <= prompt < len(self.tokens):
            raise IndexError(f'prompt {prompt}: this pool has the prompts 0 to {len(self.tokens) - 1}')
        if not -1 <= block < self.num_blocks:
            raise IndexError(f'block {block}: this backbone has the blocks 0 to {self.num_blocks - 1}')
        source = int(self.block_index[prompt])
        rewritten = block >= 0 and (source < 0 or not self._alike(source, block))
        if rewritten:
            row = self._carried(prompt, block, self.carry).clone()
            self.tokens[prompt] = 0
            self.tokens[prompt, :len(row)] = row
        self.block_index[prompt] = block
        self._index_rows()
        return rewritten

    def _alike(self, block: int, other: int) -> bool:
        """Whether a row of one block is one of the other as it is."""
        return self.widths[block] == self.widths[other]

    def _carried(self, prompt: int, block: int, carry: str) -> Tensor:
        """(C_block,) the row of a prompt, as a block would get it."""
        row, source = self.tokens.detach()[prompt], int(self.block_index[prompt])
        if source < 0:
            return row[:self.widths[block]]
        row = row[:self.widths[source]]
        return row if len(row) == self.widths[block] else CARRIERS[carry](self, row, block)

    def _index_rows(self) -> None:
        """Note on the host which rows each block owns, so that no forward has to ask the device."""
        index = self.block_index
        if self._hidden:
            index = index.clone()
            index[list(self._hidden)] = -1
        rows: List[Optional[Tensor]] = [(index == block).nonzero().flatten() for block in range(self.num_blocks)]
        if self._guest is not None:
            guest = index.new_tensor([self._guest])
            rows = [torch.cat([row[row != self._guest], guest]) for row in rows]
        self._block_rows = [row if len(row) else None for row in rows]

    def owners_changed(self) -> None:
        """Say that somebody has written ``block_index``."""
        self._index_rows()

    def __getstate__(self):
        # A copy (EMA's, a pickled one) is not what the observer observes.
        return dict(self.__dict__, observer=None)

    # Whoever writes the buffer from outside (loading, moving, EMA's copies) does one of these three afterwards.
    def _apply(self, *args, **kwargs):
        super()._apply(*args, **kwargs)
        self._index_rows()
        return self

    def train(self, mode: bool = True):
        super().train(mode)
        self._index_rows()
        return self

    def _load_from_state_dict(self, state_dict, prefix, *args, **kwargs):
        index = state_dict.get(f'{prefix}block_index')
        if index is not None and len(index) and not -1 <= int(index.min()) <= int(index.max()) < self.num_blocks:
            raise RuntimeError(
                f'{prefix}block_index of the checkpoint names the blocks {int(index.min())} to {int(index.max())}, '
                f'but this backbone has the blocks 0 to {self.num_blocks - 1}: it is of another backbone')
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)
        self._index_rows()


def check_num_tokens(num_tokens: Union[int, Sequence[int]], num_blocks: int) -> List[int]:
    """One count per block, or an error that says what is wrong with ``num_tokens``."""
    counts = [num_tokens] * num_blocks if isinstance(num_tokens, int) else num_tokens
    if not isinstance(counts, (list, tuple)) or any(type(n) is not int for n in counts):
        raise TypeError(f'num_tokens={num_tokens!r}, but it must be an int (prompts per block) or a list of '
                        f'{num_blocks} ints, one per block')
    if len(counts) != num_blocks:
        raise ValueError(f'num_tokens has {len(counts)} entries, but the backbone has {num_blocks} blocks: '
                         'give one count per block, or one int for all')
    if min(counts) < 0:
        raise ValueError(f'num_tokens={num_tokens!r}: counts must be 0 or more')
    return list(counts)
