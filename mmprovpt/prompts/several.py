"""Several sets of prompts of one backbone: which of them a forward reads, and how its samples read different ones."""
import re
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from mmprovpt.attention import running
from mmprovpt.attention.block import Given
from mmprovpt.errors import CheckpointError, ConfigError
from mmprovpt.older_torch import mark_unbacked

from .prompt_set import PromptSet

# What a choice is: one set or none for all samples, or one for each.
Choice = PromptSet | None | tuple[PromptSet | None, ...]


class PromptSets(nn.ModuleDict):
    """Named sets of prompts (:class:`PromptSet`) of one backbone; its state dict is theirs, behind their names.

    A forward asks once, when it begins, which it reads: what its thread has chosen (``using_prompts``), or else
    ``chosen``. So whatever is chosen meanwhile, here or in another thread, is for the next.

    Attributes:
        chosen: Name of the set that is read unless a thread says otherwise; None for none.
        has_checkpoints: Whether a block runs again in backward.
    """

    chosen: str | None = None
    has_checkpoints = False

    def check_name(self, name: str) -> None:
        """ConfigError, unless it can be the name of a further set."""
        if not isinstance(name, str) or not re.fullmatch(r'[A-Za-z0-9_-]+', name):
            raise ConfigError(f'name={name!r}, but a set of prompts is named by letters, digits, - and _')
        if name in self:
            raise ConfigError(f'there is a set of prompts called {name} already: remove_prompts(backbone, {name!r}) '
                              'takes it away')
        if hasattr(self, name) or name in ('tokens', 'block_index', 'form', 'prompts') or name.startswith('frozen_'):
            raise ConfigError(f'a set of prompts cannot be called {name}, which means something else here')

    def find(self, name: str | None) -> PromptSet | None:
        """The set of a name; None for None. ConfigError if there is none."""
        if name is None:
            return None
        if not isinstance(name, str) or name not in self:
            raise ConfigError(f'there is no set of prompts called {name!r}; there are {", ".join(self) or "none"} '
                              '(and None: no prompts)')
        return self._modules[name]  # type: ignore[return-value]

    @torch._dynamo.disable
    def reader(self, batch_size: int | None = None) -> 'PromptSet | MixedPrompts | NoPrompts':
        """What a forward, which begins now in this thread, is to read.

        Args:
            batch_size: Number of samples, if known.

        Raises:
            ConfigError: There is a name per sample, but not as many as samples.
            RuntimeError: A backward runs the backbone again; or samples differ, and a criterion measures a set.
        """
        if torch._C._current_graph_task_id() != -1:
            raise RuntimeError('A backward runs the backbone again (torch.utils.checkpoint around all of it), but with '
                               'several sets of prompts the choice may be another by now. Checkpoint its blocks: '
                               'with_cp=True in the config, or backbone.set_grad_checkpointing()')
        choice = running.choice(self, self.find(self.chosen))
        if not isinstance(choice, tuple):
            return choice if choice is not None and len(choice.tokens) else NoPrompts(self.num_blocks)
        if batch_size not in (None, len(choice)):
            raise ConfigError(f'using_prompts was given {len(choice)} names, but the batch has {batch_size} samples: '
                              'give one for each, or one for all')
        # What has no prompts reads none.
        choice = tuple(each if each is not None and len(each.tokens) else None for each in choice)
        sets = list(dict.fromkeys(choice))
        if len(sets) == 1:
            return sets[0] or NoPrompts(self.num_blocks)
        return MixedPrompts(choice)

    @property
    def num_blocks(self) -> int:
        """L, the number of blocks that can own prompts."""
        return self.sets[0].num_blocks

    @property
    def sets(self) -> tuple[PromptSet, ...]:
        """All of them."""
        return tuple(self._modules.values())  # type: ignore[arg-type]

    def owners(self) -> list[Tensor]:
        """A block asks that was called alone.

        Raises:
            RuntimeError: Always.
        """
        raise RuntimeError('This backbone has several sets of prompts, and which of them a block reads is known to the '
                           'forward of the backbone alone; but the block was called outside of it, or run again by a '
                           'checkpointing that is not ours: use with_cp=True in the config, or '
                           'backbone.set_grad_checkpointing()')

    def train(self, mode: bool = True) -> 'PromptSets':
        """Only those that are trained follow ``mode``: dropout in frozen ones is noise."""
        super().train(mode)
        for each in self.values():
            each.train(mode and any(parameter.requires_grad for parameter in each.parameters()))
        return self

    def _load_from_state_dict(self, state_dict, prefix, *args) -> None:
        """Raises CheckpointError for sets that are not here, whose values would be lost."""
        given = {key[len(prefix):].split('.')[0] for key in state_dict if key.startswith(prefix)}
        lost = sorted(name for name in given - set(self) if not name.startswith('frozen_'))
        if lost:
            what = 'one set of prompts without a name' if 'tokens' in lost else f'the sets {", ".join(lost)}'
            raise CheckpointError(f'the checkpoint has {what}, but the backbone has {", ".join(self)}: add them first, '
                                  'or have mmprovpt.load_prompts(backbone, name, checkpoint) load one')
        super()._load_from_state_dict(state_dict, prefix, *args)


class NoPrompts:
    """What a forward reads that reads no prompts."""

    is_mixed = keeps_outputs = wants_grad = False
    sets: tuple[PromptSet, ...] = ()

    def __init__(self, num_blocks: int) -> None:
        self.num_blocks = num_blocks

    def owners(self) -> list[Tensor]:
        """Per block nothing."""
        return [torch.empty(0, dtype=torch.long)] * self.num_blocks


class MixedPrompts:
    """What a forward reads whose samples read different sets; made for one forward, and never changed.

    A block's prompts are a table of rows, those of one set behind those of the other, and for each sample an index
    into it, as long as the largest set. What a smaller one lacks is missing, and hidden from attention.

    Args:
        choice: For each sample a set, or None.

    Attributes:
        sets: The different ones.
        keeps_outputs: Whether any of them is passed from block to block (VPT-Shallow). Then all are tokens, and what
            becomes of the others' is thrown away.

    Raises:
        RuntimeError: A criterion measures one of them.
    """

    is_mixed = True

    def __init__(self, choice: Sequence[PromptSet | None]) -> None:
        self.sets = tuple(each for each in dict.fromkeys(choice) if each is not None)
        if torch.is_grad_enabled() and any(each.probe is not None and each.wants_grad for each in self.sets):
            raise RuntimeError('The idleness of prompts is a mean over a batch whose samples all read them, and is not '
                               'defined where they read different sets: while a RelocationSession (or a criterion) '
                               'measures a set, give it batches of its own (set_prompts); session.criterion.close() '
                               'ends it')
        self.keeps_outputs = any(each.keeps_outputs for each in self.sets)
        self.wants_grad = any(each.wants_grad for each in self.sets)
        device = self.sets[0].tokens.device
        numbers = torch.tensor([-1 if each is None else self.sets.index(each) for each in choice])
        members = (numbers == torch.arange(len(self.sets))[:, None]).long()  # (sets, B), on the host
        # (B,) each: 1 where a sample reads this set, else 0; and how many before it read the same one.
        self._members = members.to(device).unbind()
        self._rank = (members * (members.cumsum(1) - 1)).sum(0).to(device)
        self._samples = [member.nonzero().flatten().to(device) for member in members]
        for samples in self._samples:  # one compilation serves all numbers of samples that read a set
            mark_unbacked(samples, 0)
        owners = [each.owners() for each in self.sets]
        self._owned = list(zip(*owners))
        counts = [self._counts(block) for block in range(len(self._owned))]
        self._columns = [torch.arange(max(each), device=device) for each in counts]
        has_none = bool((numbers < 0).any())
        self._is_padded = [min(each) < max(each) or has_none and max(each) > 0 for each in counts]

    def owners(self) -> list[Tensor]:
        """Per block (n,) int64, 0 to n - 1, n being the largest number of prompts that a set has in it."""
        return self._columns

    def _counts(self, block: int) -> list[int]:
        """Of each set; prompts of VPT-Shallow, which only the first block owns, pass all."""
        return [self._owned[0 if each.keeps_outputs else block][number].shape[0]
                for number, each in enumerate(self.sets)]

    def missing(self, block: int) -> Tensor | None:
        """(B, n) bool, True where a sample has no such prompt; None if all have all."""
        if not self._is_padded[block]:
            return None
        count = torch.stack([member * count for member, count in zip(self._members, self._counts(block))]).sum(0)
        return self._columns[block] >= count[:, None]

    def table(self, block: int, x: Tensor, given: Given) -> tuple[Tensor, Tensor, Tensor | None]:
        """The rows of all sets, and which of them are a sample's.

        Args:
            block: Its number.
            x: (B, N, C) or (B, h, w, C), the block's input.
            given: What else they follow from.

        Returns:
            (R, C) of the type of x; (B, n) int64 in [0, R), anything where prompts are missing; and where they are,
            see ``missing``.
        """
        tables, start, size = [], torch.zeros_like(self._rank), 0
        for number, (prompts, samples) in enumerate(zip(self.sets, self._samples)):
            # Where rows do not follow from x, only the number of samples counts.
            own = x.index_select(0, samples) if prompts.depends_on_input(block) else x.narrow(0, 0, samples.shape[0])
            kept = None
            if prompts.keeps_outputs and given.kept is not None:
                kept = given.kept.index_select(0, samples).narrow(1, 0, self._counts(block)[number])
            rows = prompts.read(block, own, Given(self._owned[block][number], given.grid, kept)).to(x.dtype)
            step = rows.shape[1] if rows.dim() == 3 else 0
            start = start + self._members[number] * (size + self._rank * step)
            tables.append(rows.flatten(0, -2))
            size += tables[-1].shape[0]
        pick, missing = start[:, None] + self._columns[block], self.missing(block)
        return torch.cat(tables), pick if missing is None else pick.masked_fill(missing, 0), missing

    def read(self, block: int, x: Tensor, given: Given) -> Tensor:
        """(B, n, C) the prompts of a block before its norm, as tokens."""
        rows, pick, _ = self.table(block, x, given)
        return rows.index_select(0, pick.flatten()).unflatten(0, pick.shape)

    def leave(self, block: int, outputs: Tensor) -> Tensor | None:
        """What goes into the next block of the outputs (B, n, C); see ``ShallowPrompts``."""
        return next(each for each in self.sets if each.keeps_outputs).leave(block, outputs)
