"""Checkpoints are read as weights and not executed, unless their user vouches for them.

A checkpoint is a pickle, which may call any function. ``weights_only=True`` of PyTorch allows tensors and plain Python
types alone. MMEngine tries that first, but allows ``getattr``, which is enough to reach any function, and after a
failure it reads the file without limits.
"""
import argparse
import pickle
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from mmprovpt.errors import ConfigError

_lock = threading.Lock()
_open = 0  # how many blocks of only_weights are open
_trusted = False
_load = torch.load


@contextmanager
def only_weights() -> Iterator[None]:
    """While the block runs, every ``torch.load`` of this process reads weights alone, whatever its caller asks for.

    Our tools run in it. It exchanges ``torch.load``, so a program that is not yours to set up should not open one.

    Raises:
        ConfigError: Of ``torch.load`` within the block: the file holds more, or is no checkpoint at all.
    """
    global _open, _load, _trusted
    with _lock:
        if not _open:
            _load, torch.load = torch.load, _load_in_block
        _open += 1
        before = _trusted
    try:
        yield
    finally:
        with _lock:
            _open -= 1
            _trusted = before
            if not _open:
                torch.load = _load


def trust_checkpoints() -> None:
    """Read all checkpoints without limits from now on, to the end of the block of :func:`only_weights`, if any."""
    global _trusted
    _trusted = True


def check_only_weights(path: str | Path) -> None:
    """Raise ConfigError if a file holds more than weights, before somebody else reads it without limits.

    An address is not checked; nor is anything within :func:`only_weights`, which checks each reading itself.
    """
    path = Path(path).expanduser()
    if _trusted or _open or not path.is_file():
        return
    try:
        _load_strictly(path, map_location='cpu', mmap=True)
    except (RuntimeError, TypeError) as error:  # a file of PyTorch before 1.6, or PyTorch 2.0: not to be mapped
        if 'mmap' not in str(error):
            raise
        _load_strictly(path, map_location='cpu')


def load_weights(path: str | Path) -> dict:
    """What a file holds, on the CPU; ConfigError if that is more than weights and nobody vouches for it."""
    return _load_in_block(path, 'cpu')


def _load_in_block(f, map_location=None, pickle_module=None, *, weights_only=None, **kwargs):
    """In place of ``torch.load``."""
    if _trusted:
        return _load(f, map_location, pickle_module, weights_only=False, **kwargs)
    return _load_strictly(f, map_location, **kwargs)


def _load_strictly(f, map_location=None, **kwargs):
    load = _load if _open else torch.load
    try:
        with _only_our_globals():
            return load(f, map_location, weights_only=True, **kwargs)
    except pickle.UnpicklingError as error:
        raise ConfigError(_refusal(f, str(error))) from error
    except RuntimeError as error:
        if 'TorchScript' not in str(error):
            raise
        raise ConfigError(_refusal(f, 'it is a TorchScript archive')) from error


def _refusal(f, reason: str) -> str:
    name = f if isinstance(f, (str, Path)) else getattr(f, 'name', 'a checkpoint')
    found = re.search(r'(?:GLOBAL|function) (\S+)', reason)
    # Without PyTorch's advice, which stands around it.
    reason = (f'it calls {found[1]}' if found else
              reason.partition('Check the documentation')[0].strip().splitlines()[-1].strip())
    return (f'{name} holds more than weights, or is no checkpoint ({reason}): reading it could run code of whoever '
            'made it. If you trust them, pass --trust-checkpoint (in Python: mmprovpt.trust.trust_checkpoints())')


@contextmanager
def _only_our_globals() -> Iterator[None]:
    """What callers have allowed does not count: MMEngine allows getattr."""
    serialization = torch.serialization
    if not hasattr(serialization, 'safe_globals'):  # before PyTorch 2.5
        yield
        return
    before = serialization.get_safe_globals()
    serialization.clear_safe_globals()
    serialization.add_safe_globals(_allowed())
    try:
        yield
    finally:
        serialization.clear_safe_globals()
        serialization.add_safe_globals(before)


def _of_numpy() -> list:
    """MMEngine's message hub has arrays; MMSegmentation's best score is a number of NumPy. PyTorch works without it."""
    try:
        import numpy as np
    except ModuleNotFoundError:
        return []
    core = np._core if hasattr(np, '_core') else np.core
    allowed = [np.ndarray, np.dtype, *{type(np.dtype(code)) for code in np.typecodes['All']}]
    for function in (core.multiarray._reconstruct, core.multiarray.scalar):
        # Its module was renamed by NumPy 2.
        allowed += [(function, f'numpy.{name}.multiarray.{function.__name__}') for name in ('core', '_core')]
    return allowed


def _allowed() -> list:
    """What ordinary checkpoints hold beside tensors and plain types; none of it calls anything of the file's choice."""
    # The arguments of training are in checkpoints of timm, DeiT and DINO.
    allowed = [argparse.Namespace, *_of_numpy()]
    try:
        from mmengine.logging.history_buffer import HistoryBuffer
        from mmengine.optim.scheduler.param_scheduler import OneCycleParamScheduler
    except ModuleNotFoundError:
        return allowed
    one_cycle = object()  # in place of the class, of which nothing is to be made
    own = [(HistoryBuffer, HistoryBuffer, ('min', 'max', 'current', 'mean')),
           (one_cycle, OneCycleParamScheduler, ('_annealing_cos', '_annealing_linear'))]

    def getattr_(owner, name):
        """Pickles name a class's own functions thus; of anything else this would be a way to any function."""
        for given, kind, names in own:
            if owner is given and name in names:
                return getattr(kind, name)
        raise pickle.UnpicklingError('function getattr')

    place = f'{OneCycleParamScheduler.__module__}.OneCycleParamScheduler'
    return [*allowed, HistoryBuffer, (one_cycle, place),
            *((getattr_, f'{module}.getattr') for module in ('builtins', '__builtin__'))]
