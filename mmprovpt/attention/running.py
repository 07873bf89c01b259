"""What is under way in this thread.

Between those who know a thing and those who need it lies upstream's code, which has no argument for it: a block calls
``self.attn(self.norm1(x))``. So two things travel beside the arguments, in a thread-local: what a block hands to its
own attention, and one record of the running forward. Two threads never share them, and both are taken back in
``finally``.
"""
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import CheckpointFunction

from mmprovpt.older_torch import is_compiling

_here = threading.local()
# For a function that torch.compile is to leave alone, but not what it calls. (What torch.compiler.disable does with
# recursive=False compiles the function all the same, and is refused by torch.export.)
uncompiled = torch._dynamo.decorators.skip


class Place(NamedTuple):
    """Where a block or an attention stands; a tuple, so that the prompts do not become a child of it.

    Attributes:
        prompts: The :class:`~mmprovpt.prompts.PromptSet` of the backbone.
        number: Of the block, from 0.
    """
    prompts: Any  # its class imports this module
    number: int


# Queries (or None), keys and values of a block's prompts. Where forwards share them, (n, num_heads, d) and contiguous:
# no stride depends on n, so that one compilation serves all numbers of prompts.
Projected = tuple[Tensor | None, Tensor, Tensor]


class Handed:
    """What a block hands to its attention for one call.

    Attributes:
        rows: (n, C), shared by all samples, or (B, n, C): the block's prompts behind its norm. None where prompts are
            tokens, or projected already.
        gates: (B, n) numbers to be added to the logits of the prompts, or None.
        wants_outputs: Whether attention shall say what becomes of the prompts.
        behind: How many of the tokens, the last ones, are prompts; None where no token is.
        pick: (B, n) int64, which of ``rows`` (R, C) each sample reads, where samples read different sets; or None.
        missing: (B, n) bool, True for prompts that a sample does not have, the last n keys; or None.
        projected: What the attention makes of the rows, where that was computed before (``folded``), or None.
        outputs: (B, n, C), set by the attention.
    """

    def __init__(self, rows: Tensor | None, gates: Tensor | None = None, wants_outputs: bool = False,
                 behind: int | None = None, pick: Tensor | None = None, missing: Tensor | None = None,
                 projected: 'Projected | None' = None) -> None:
        self.rows = rows
        self.projected = projected
        self.behind = behind
        self.pick = pick
        self.missing = missing
        self.gates = gates
        self.wants_outputs = wants_outputs
        self.outputs: Tensor | None = None

    @property
    def has_rows(self) -> bool:
        """Whether prompts are beside the tokens."""
        return self.rows is not None or self.projected is not None


class Forward:
    """Record of one forward of a backbone: what a block needs beside its own input.

    Attributes:
        prompts: Whose forward it is: all that the backbone has.
        reader: Those of them that this forward reads; see ``PromptSet.reader``.
        owners: Per block (n,) int64, numbers of the prompts that it owns.
        wants_grad: Whether prompts shall get a gradient.
        grid: Height and width of the map of patches, once it is known.
        kept: What the block before made of its prompts, (B, n, C), where that goes into the next one.
        folded: Per block, what its attention makes of the prompts, where this thread has it already, or None.
    """

    @uncompiled
    def __init__(self, prompts: nn.Module, reader: Any) -> None:
        self.prompts = prompts
        self.reader = reader
        self.owners: list[Tensor] = reader.owners()
        self.wants_grad: bool = torch.is_grad_enabled() and reader.wants_grad
        self.grid: tuple[int, int] | None = None
        self.kept: Tensor | None = None
        fold = _last('folds', reader, None)
        self.folded: list[Projected | None] = [None] * len(self.owners) if fold is None else fold.of_forward()
        # -1, or the number of the backward that runs this forward again.
        self.task = torch._C._current_graph_task_id()


def current(prompts: nn.Module) -> Forward | None:
    """The running forward of these prompts; None where a block is called by itself.

    So is a block that a backward runs again (gradient checkpointing that is not ours): the record of another forward,
    which may be under way meanwhile, is not its own.
    """
    record = getattr(_here, 'record', None)
    if record is None or record.prompts is not prompts:
        return None
    if not is_compiling() and record.task != torch._C._current_graph_task_id():
        return None
    return record


@uncompiled
def enter(prompts: Any, reader: Any, forward: Callable, args: tuple, kwargs: dict):
    """Call ``forward`` within a record of its own, or within that of the entry around it."""
    outer = getattr(_here, 'record', None)
    _here.record = current(prompts) or Forward(prompts, reader)
    try:
        with _compiling_checkpoints() if prompts.has_checkpoints else nullcontext():
            return forward(*args, **kwargs)
    finally:
        _here.record = outer


def _compiling_checkpoints():
    """Allow what a compiled checkpoint does to a thread-local: its block hands over as often as it runs."""
    name = 'skip_fwd_side_effects_in_bwd_under_checkpoint'
    return torch._dynamo.config.patch(name, True) if hasattr(torch._dynamo.config, name) else nullcontext()


def is_checkpointed_in_vain() -> bool:
    """Whether this runs in a re-entrant checkpoint whose inputs need no gradient, so that nothing in it gets one.

    PyTorch has no other sign of it than the call itself. Looked for only where gradients are off.
    """
    frame = None if torch.is_grad_enabled() else sys._getframe()
    while frame is not None:
        if frame.f_code is CheckpointFunction.forward.__code__:
            return not any(isinstance(value, Tensor) and value.requires_grad for value in frame.f_locals['args'])
        frame = frame.f_back
    return False


def note_grid(patch_embedding: nn.Module, args: tuple, output: Tensor) -> None:
    """Forward hook of the convolution that embeds patches, whose output is (B, C, h, w)."""
    record = getattr(_here, 'record', None)
    if record is not None:
        record.grid = tuple(output.shape[-2:])


def hand_over(handed: Handed | None) -> None:
    """Have the attention that is called next find ``handed``; None takes it back."""
    _here.handed = handed


def handed() -> Handed | None:
    """What the block around has handed over; None outside of a prompted block."""
    return getattr(_here, 'handed', None)


def hidden(prompts: nn.Module) -> list[int]:
    """Numbers of the prompts that this thread has hidden."""
    return [number for owner, numbers in getattr(_here, 'hidden', ()) if owner is prompts for number in numbers]


def hiding(prompts: nn.Module, numbers: tuple[int, ...]) -> AbstractContextManager[None]:
    """For the time of a ``with``, no block reads these prompts, in this thread; nests."""
    return _noting('hidden', (prompts, numbers))


def choice(prompts: nn.Module, otherwise: Any) -> Any:
    """What this thread has chosen of several sets, or else the other."""
    return _last('choices', prompts, otherwise)


def choosing(prompts: nn.Module, chosen: Any) -> AbstractContextManager[None]:
    """For the time of a ``with``, forwards in this thread read ``chosen`` of several sets; nests."""
    return _noting('choices', (prompts, chosen))


def folding(prompts: nn.Module, fold: Any) -> AbstractContextManager[None]:
    """For the time of a ``with``, forwards in this thread that read these prompts take from ``fold`` what it has."""
    return _noting('folds', (prompts, fold))


def _last(name: str, prompts: Any, otherwise: Any) -> Any:
    """The last note of this thread about these prompts, or else the other."""
    return next((noted for owner, noted in reversed(getattr(_here, name, ())) if owner is prompts), otherwise)


@contextmanager
def _noting(name: str, note: tuple) -> Iterator[None]:
    """For the time of a ``with``, this thread has one more note of that name."""
    before = getattr(_here, name, ())
    setattr(_here, name, (*before, note))
    try:
        yield
    finally:
        setattr(_here, name, before)


@contextmanager
def watching(watcher: Callable[[nn.Module, Tensor, Tensor], None]) -> Iterator[None]:
    """For the time of a ``with``, attention in this thread is computed by explicit weights, for ``watcher`` to see.

    Args:
        watcher: Called with the attention module, its weights (B', heads, N, N + n) and values (B', heads, N + n, d).
    """
    before = getattr(_here, 'watcher', None)
    _here.watcher = watcher
    try:
        yield
    finally:
        _here.watcher = before


def watcher() -> Callable | None:
    """Who watches attention in this thread, if anyone."""
    return getattr(_here, 'watcher', None)
