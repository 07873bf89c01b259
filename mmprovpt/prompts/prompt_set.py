"""A prompt is a row; relocation changes which block owns it."""
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses import FakeTensor

from mmprovpt.attention import running
from mmprovpt.attention.block import Given
from mmprovpt.errors import CheckpointError, ConfigError
from mmprovpt.kinds import Kinds
from mmprovpt.older_torch import mark_unbacked

from .cross_stage import CROSS_STAGE, check_mergings

# Forms of prompts, by the name that a config gives as ``type``.
FORMS = Kinds('prompts')
# Key of the form's name in a state dict, behind 'prompts.'.
FORM = 'form'
# In the metadata that PyTorch keeps with a state dict, under the prompts' name: what they were built of.
CONFIG = 'config'
OTHER = 'another form of prompts'  # old checkpoints do not name it
_SENTINEL = (1.0, -2.0, 0.5)  # exact in every floating-point type


class PromptSet(nn.Module):
    """All prompts of a backbone, and which block owns each.

    Relocation writes one integer of ``block_index`` (and, where the new block has another width, one row of
    ``tokens``). Shapes never change, so optimizer state, DDP buckets, EMA and checkpoints stay valid. ``block_index``
    is the truth: whoever writes it, by whatever means, is obeyed by the next forward.

    Args:
        num_tokens: Prompts per block at the start, an int for all blocks or a list of one int per block.
        widths: Length C_i of a row in each of the L blocks: the block's width, where a row is the prompt itself.
        mergings: The backbone's patch mergings, one between each two consecutive widths (Swin), in order.
        cross_stage: What becomes of a prompt that moves to a block of another width. ``'project'``: deeper, the frozen
            patch merging maps it; shallower, the least-squares inverse of that. ``'reinit'``: a fresh draw.

    Attributes:
        tokens (nn.Parameter): (N, max C_i), float32. Prompt k is its first C_i numbers, i its block.
        block_index (Tensor): (N,), int64, buffer, in [0, L); -1 for a prompt that no block reads.
        is_filled: Whether rows and owners have values; not between ``to_empty`` and loading or ``reset_parameters``.
        awaits_training: Whether a checkpoint without prompts was loaded, and these are as they were drawn.
        probe: Who measures prompts in forward and backward (:class:`mmprovpt.relocation.Criterion`), or None.

    Raises:
        ConfigError: If an argument is of the wrong type, length or range.
    """

    renamed = dict(carry='cross_stage')
    removed = dict(num_spare='prompts that no block owns are an experiment of its own, benchmarks/table3')
    tokens: nn.Parameter
    block_index: Tensor
    # Whether what a block makes of its prompts goes into the next one, as if they were tokens.
    keeps_outputs = False
    # Whether its blocks must know how many patches there are.
    needs_grid = False
    # Whether samples of a batch read different prompts.
    is_mixed = False
    # What it was built of, if that is of plain types: for those who load it without a config.
    config: dict | None = None

    def __init__(self, num_tokens: int | Sequence[int], widths: Sequence[int],
                 mergings: Sequence[nn.Module] = (), cross_stage: str = 'project') -> None:
        super().__init__()
        if cross_stage not in CROSS_STAGE:
            raise ConfigError(f'cross_stage={cross_stage!r}, but it must be one of {sorted(CROSS_STAGE)}')
        self.widths = [int(width) for width in widths]
        self.cross_stage = cross_stage
        # In a tuple, they do not become children of the prompts (and have no second name in the state dict).
        self.mergings = tuple(mergings)
        if cross_stage == 'project':
            check_mergings(self.widths, self.mergings)
        self.num_tokens = check_num_tokens(num_tokens, len(self.widths))
        self.register_buffer('block_index', self.initial_owners())
        self.tokens = nn.Parameter(torch.zeros(len(self.block_index), max(self.widths)))
        # The name as text, also where the rest is on the meta device. PyTorch's distributed checkpoints look for an
        # attribute of each key; it is no buffer, which would be moved and emptied.
        self.form = torch.tensor(list(type(self).__name__.encode()), dtype=torch.uint8, device='cpu')
        self.probe: Any = None
        self.is_filled = True
        self.awaits_training = False
        self.has_checkpoints = False  # whether a block runs again in backward
        # Owners when last asked for, read on an accelerator: (block_index, its version, it on the host, result).
        self._known_owners: tuple | None = None
        # A parameter that no forward uses would stall DDP.
        self.tokens.requires_grad_(len(self.tokens) > 0)

    # What a form says

    def initial_owners(self) -> Tensor:
        """(N,) int64, the block of each prompt at the start."""
        return torch.arange(len(self.num_tokens)).repeat_interleave(torch.tensor(self.num_tokens, dtype=torch.long))

    def initial_row(self, block: int) -> Tensor:
        """(C_block,) a fresh row for a block; subclasses say how it is drawn."""
        raise NotImplementedError(f'{type(self).__name__} does not say how a prompt is drawn')

    def read(self, block: int, x: Tensor, given: Given) -> Tensor:
        """The prompts of a block before its norm; subclasses say how.

        Args:
            block: Its number.
            x: (B, N, C) the block's input (timm's Swin: (B, h, w, C)), before its norm.
            given: What else they follow from.

        Returns:
            (n, C), or (B, n, C) where samples differ; n may be 0.
        """
        raise NotImplementedError(f'{type(self).__name__} does not say how a block reads its prompts')

    def leave(self, block: int, outputs: Tensor) -> Tensor | None:
        """What goes into the next block of the outputs (B, n, C) of a block's prompts, if ``keeps_outputs``."""
        return None

    def depends_on_input(self, block: int) -> bool:
        """Whether ``read`` does, in eval mode."""
        return False

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Draw all rows anew, and put every prompt where it was at the start."""
        owners = self.initial_owners()
        self.block_index.copy_(owners)
        self.tokens.zero_()
        for prompt, block in enumerate(owners.tolist()):
            row = self.initial_row(block)
            self.tokens[prompt, :len(row)] = row.to(self.tokens)
        self.is_filled, self.awaits_training = True, False
        self.owners_changed()

    # What a forward reads; see mmprovpt.prompts.several, where there is a choice

    def reader(self, batch_size: int | None = None) -> 'PromptSet':
        """The prompts that a forward, which begins now in this thread, is to read."""
        return self

    @property
    def sets(self) -> 'tuple[PromptSet, ...]':
        """All sets that it consists of."""
        return (self, )

    @property
    def wants_grad(self) -> bool:
        """Whether prompts are trained."""
        return self.tokens.requires_grad

    def missing(self, block: int) -> None:
        """Every sample has all prompts."""

    # Who owns what

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
        """Trainable numbers that a forward really reads: Σ_k C_{d_k}, and what else there is."""
        return int((torch.tensor(self.widths) * self.distribution.cpu()).sum())

    @torch._dynamo.disable
    def owners(self) -> list[Tensor]:
        """Per block (n,) int64 on the device of the rows: numbers of the prompts that it reads, ascending.

        On CPU they are derived from ``block_index`` at each call. On an accelerator that would wait for the device:
        they are derived again when the buffer is another one or its version has changed, and after
        :meth:`owners_changed`. An export takes those of the latest call, as constants. Prompts hidden in this thread
        are left out.

        Raises:
            RuntimeError: The prompts have no values yet.
        """
        index = self.block_index
        if isinstance(index, FakeTensor):
            if self._known_owners is None:
                raise RuntimeError('Which block owns which prompt becomes a constant of an exported graph, and is '
                                   'known after the first forward: call the model once before you export it')
            return [torch.tensor(owned.tolist(), dtype=torch.long) for owned in self._known_owners[3]]
        if index.is_meta or not self.is_filled:
            raise RuntimeError('The prompts have no values: the model was built on the meta device, or emptied. Load a '
                               'checkpoint, or call prompts.reset_parameters() after to_empty()')
        away = running.hidden(self)
        known = self._known_owners
        if index.device.type != 'cpu' and known and known[0] is index and known[1] == index._version:
            if not away:
                return known[3]
            host = known[2]
        else:
            host = index.detach().cpu()
        if away:
            host = host.clone()
            host[away] = -1
            return _group(host, self.num_blocks, index.device)
        owners = _group(host, self.num_blocks, index.device)
        self._known_owners = (index, index._version, host, owners)
        return owners

    def owners_changed(self) -> None:
        """To be called by who writes ``block_index`` without PyTorch's noticing, as ``.data.copy_`` does."""
        self._known_owners = None

    def rows(self, block: int) -> Tensor:
        """(n, C_block) the rows that a block owns now."""
        return self.rows_of(block, self.owners()[block])

    def rows_of(self, block: int, owned: Tensor) -> Tensor:
        """(n, C_block) the rows ``owned`` (n,) by a block."""
        return self.tokens.index_select(0, owned)[:, :self.widths[block]]

    def without(self, *prompts: int):
        """For the time of a ``with``, no block reads these prompts in this thread: PRO-VPT Eq. 5's removal; nests."""
        return running.hiding(self, prompts)

    # Relocation

    @torch.no_grad()
    def relocate(self, prompt: int, block: int) -> bool:
        """Give a prompt to a block.

        Within one width its row keeps its value; across widths see ``cross_stage``.

        Args:
            prompt: Number of the prompt, in [0, N).
            block: Number of its new block, in [0, L); or -1, and no block reads it any more.

        Returns:
            Whether the row was rewritten. What an optimizer remembers of it is then void and to be zeroed.

        Raises:
            IndexError: If there is no such prompt or block, or no block owns the prompt.
        """
        if not 0 <= prompt < len(self.tokens):
            raise IndexError(f'prompt {prompt}: there are the prompts 0 to {len(self.tokens) - 1}')
        if not -1 <= block < self.num_blocks:
            raise IndexError(f'block {block}: this backbone has the blocks 0 to {self.num_blocks - 1}')
        source = int(self.block_index[prompt])
        if source < 0:
            raise IndexError(f'prompt {prompt} belongs to no block')
        rewritten = block >= 0 and not self.alike(source, block)
        if rewritten:
            row = self.arriving_row(prompt, source, block)
            self.tokens[prompt] = 0
            self.tokens[prompt, :len(row)] = row.to(self.tokens)
        self.block_index[prompt] = block
        self.owners_changed()
        return rewritten

    def alike(self, block: int, other: int) -> bool:
        """Whether a row of one block is one of the other as it is."""
        return self.widths[block] == self.widths[other]

    def arriving_row(self, prompt: int, source: int, block: int) -> Tensor:
        """(C_block,) the row of a prompt as a block of another width gets it."""
        row = self.tokens.detach()[prompt, :self.widths[source]].clone()
        return CROSS_STAGE[self.cross_stage](self, row, block)

    # Copies, devices, checkpoints

    def __getstate__(self):
        # A copy (EMA's, a pickled one) is not what the probe measures.
        return dict(self.__dict__, probe=None, _known_owners=None)

    def _apply(self, fn: Callable, recurse: bool = True):
        # ``to_empty`` cannot be told from other moves but by what it does to values.
        moved = fn(torch.tensor(_SENTINEL, device=self.block_index.device))
        if not moved.is_meta and moved.detach().cpu().tolist() != list(_SENTINEL):
            self.is_filled = False
        self.owners_changed()
        return super()._apply(fn, recurse)

    def _save_to_state_dict(self, destination, prefix, keep_vars):
        super()._save_to_state_dict(destination, prefix, keep_vars)
        # As text in a tensor: whatever carries a state dict carries it. Shapes alone do not tell all forms apart.
        destination[prefix + FORM] = self.form
        if self.config is not None and hasattr(destination, '_metadata'):
            destination._metadata.setdefault(prefix[:-1], {})[CONFIG] = self.config

    def _load_from_state_dict(self, state_dict, prefix, local_metadata, strict, missing_keys, unexpected_keys,
                              error_msgs) -> None:
        """Whole or not at all, for whoever loads; no prompts at all are no fault (a checkpoint of upstream).

        Raises:
            CheckpointError: The checkpoint has prompts of another form, number, width or backbone, or only some keys.
        """
        own = (*self._parameters, *self._buffers)
        form = state_dict.pop(prefix + FORM, None)
        given = {name: state_dict[prefix + name] for name in own if prefix + name in state_dict}
        several = sorted({key[len(prefix):].split('.')[0] for key in state_dict
                          if key.startswith(prefix) and key[len(prefix):].endswith('.tokens')})
        if several:
            raise CheckpointError(f'the checkpoint has several sets of prompts ({", ".join(several)}), but the model '
                                  'has one without a name: build the backbone without prompts, and have '
                                  'mmprovpt.load_prompts(backbone, name, checkpoint) load each')
        if not given and form is None and self.is_filled:
            self.awaits_training = True  # what was drawn stays, to be trained
            return
        if given or form is not None:
            others = {key for key in state_dict if key.startswith(prefix)} - {prefix + name for name in own}
            others = {key for key in others if not key.startswith(f'{prefix}frozen_')}  # fingerprints
            self._require_fit(given, _form_name(form, others), prefix)
        super()._load_from_state_dict(state_dict, prefix, local_metadata, strict, missing_keys, unexpected_keys,
                                      error_msgs)
        if given:
            self.is_filled, self.awaits_training = True, False
        self.owners_changed()

    def _require_fit(self, given: dict[str, Tensor], form: str | None, prefix: str) -> None:
        """Raise if these values, of a form that is None if the checkpoint is old, are not for such prompts."""
        here, mine = type(self).__name__, dict(self.state_dict())
        mine.pop(FORM)
        unlike = given.keys() ^ mine.keys()
        if form not in (None, here) or (form is None and unlike - {'tokens', 'block_index'}):
            raise CheckpointError(f'{prefix}* of the checkpoint are {form or OTHER}, but the model has {here}: set '
                                  'prompts=dict(type=...) as it was trained')
        if unlike:
            raise CheckpointError(f'the checkpoint has only some of the prompts: {", ".join(sorted(given)) or "none"} '
                                  f'of {", ".join(prefix + name for name in sorted(mine))}. Was it cut by hand?')
        unfit = [f'{prefix}{name} is {tuple(value.shape)}, but {tuple(mine[name].shape)} in the model'
                 for name, value in given.items() if value.shape != mine[name].shape]
        if unfit:
            counts = torch.bincount(given['block_index'].clamp_min(0).cpu()).tolist()
            raise CheckpointError(
                f'the checkpoint has other prompts than the model: {"; ".join(unfit)}. It has '
                f'{len(given["block_index"])} in all, {counts} in the blocks: set prompts.num_tokens to as many as it '
                'was trained with, and widths and options alike')
        index = given['block_index']
        if len(index) and not -1 <= int(index.min()) <= int(index.max()) < self.num_blocks:
            raise CheckpointError(
                f'{prefix}block_index of the checkpoint names the blocks {int(index.min())} to {int(index.max())}, '
                f'but this backbone has the blocks 0 to {self.num_blocks - 1}: it is of another backbone')
        if self.keeps_outputs and bool(index.any()):
            raise CheckpointError(f'{prefix}* of the checkpoint have prompts in other blocks than the first: they are '
                                  f"StaticPrompts, but the model has {here}. Set prompts=dict(type='StaticPrompts')")


def _form_name(form: Tensor | None, others: set[str]) -> str | None:
    """Of a checkpoint; old ones do not say it, but have keys of their own if it is another one."""
    if form is None:
        return OTHER if others else None
    return bytes(form.tolist()).decode()


def _group(index: Tensor, num_blocks: int, device: torch.device) -> list[Tensor]:
    """Per block, where a host tensor (N,) names it."""
    # By Python: while a graph is traced, owners are constants, and sorting is not for each ONNX.
    groups: list[list[int]] = [[] for _ in range(num_blocks + 1)]
    for prompt, block in enumerate(index.tolist()):
        groups[block].append(prompt)  # -1, those of no block, come last
    order = torch.tensor([prompt for group in groups for prompt in group], dtype=torch.long).to(device)
    counts = [len(group) for group in groups]
    owners = [owned.clone() for owned in order.split(counts)[:-1]]
    for owned in owners:
        # One compilation serves all numbers of prompts, 0 included.
        mark_unbacked(owned, 0)
    return owners


def check_num_tokens(num_tokens: int | Sequence[int], num_blocks: int) -> list[int]:
    """One count per block, or an error that says what is wrong with ``num_tokens``."""
    counts = [num_tokens] * num_blocks if type(num_tokens) is int else num_tokens
    if not isinstance(counts, (list, tuple)) or any(type(n) is not int for n in counts):
        raise ConfigError(f'num_tokens={num_tokens!r}, but it must be an int (prompts per block) or a list of '
                          f'{num_blocks} ints, one per block')
    if len(counts) != num_blocks:
        raise ConfigError(f'num_tokens has {len(counts)} entries, but the backbone has {num_blocks} blocks: '
                          'give one count per block, or one int for all')
    if min(counts) < 0:
        raise ConfigError(f'num_tokens={num_tokens!r}: counts must be 0 or more')
    return list(counts)


def find_prompts(model: nn.Module) -> PromptSet:
    """The only set of prompts in a model, which may be wrapped (DDP).

    Raises:
        ConfigError: There is none, or more than one.
    """
    found = {name: module for name, module in model.named_modules() if isinstance(module, PromptSet)}
    if len(found) != 1:
        raise ConfigError(f'{type(model).__name__} must have one set of prompts, but has {len(found)}'
                         f'{": " + ", ".join(found) if found else ""}; give the backbone `prompts`, or call '
                         'inject_prompts')
    return next(iter(found.values()))


__all__ = ['FORMS', 'PromptSet', 'check_num_tokens', 'find_prompts']
