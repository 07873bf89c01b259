"""Several sets of prompts on one frozen backbone (docs/how-to/several_tasks.md)."""
from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mmprovpt.attention import running
from mmprovpt.attention.support import Block, find_blocks
from mmprovpt.errors import CheckpointError, ConfigError
from mmprovpt.prompts import FORMS, PromptSet, PromptSets
from mmprovpt.prompts.prompt_set import CONFIG, FORM
from mmprovpt.trust import load_weights

from .before import disconnect, known_blocks, restore
from .inject import become_prompted, build_prompts, connect, own
from .loading import FILE_FINGERPRINT, FINGERPRINT, PROMPTS, SOURCE
from .prompted import PromptedBackbone

# The name that prompts without one get, once there are others.
DEFAULT = 'default'


def add_prompts(backbone: nn.Module, name: str, prompts: dict) -> PromptSet:
    """Give a backbone a further set of prompts, to be trained; the first one is chosen.

    The backbone becomes a prompted one, as by :func:`mmprovpt.inject_prompts`, and ``backbone.prompts`` a
    :class:`~mmprovpt.PromptSets`. If it has prompts without a name already, they are called ``'default'`` from now on.
    Further sets may come and go while other threads use the backbone; but not the first, nor the last.

    Args:
        backbone: Any that is supported, with prompts or without.
        name: Letters, digits, - and _.
        prompts: Config, e.g. ``dict(type='StaticPrompts', num_tokens=10)``. Sets may differ in all of it.

    Returns:
        The set, which is ``backbone.prompts[name]`` from now on.

    Raises:
        ConfigError: The backbone is not supported, the name is taken, or ``prompts`` does not fit.
    """
    host = backbone.prompts if isinstance(backbone, PromptedBackbone) else None
    if host is None and any(isinstance(module, PromptSet) for module in backbone.modules()):
        raise ConfigError(f'a backbone in this {type(backbone).__name__} has prompts already: give that one')
    sets = host if isinstance(host, PromptSets) else PromptSets()
    sets.check_name(name)
    if host is not None and host is not sets and name == DEFAULT:
        raise ConfigError(f'{type(backbone).__name__} has prompts already, which are called {DEFAULT} from now on: '
                          'give these another name')
    blocks = _blocks(backbone)
    built = build_prompts(backbone, blocks, prompts)
    if host is None:
        sets[name] = built
        sets.chosen = name
        become_prompted(backbone)
        own(backbone, blocks, sets)
        return built
    if host is not sets:
        sets[DEFAULT] = host
        sets.chosen = DEFAULT
        _reconnect(backbone, sets)
    sets[name] = built
    sets.train(backbone.training)
    return built


def load_prompts(backbone: nn.Module, name: str, checkpoint: str | Path | dict, prompts: dict | None = None,
                 trainable: bool = False) -> PromptSet:
    """Give a backbone a further set of prompts with the values of a checkpoint; it is frozen unless ``trainable``.

    Nothing else is read of the checkpoint, which may be small or full; its frozen weights must be those here.

    Args:
        backbone, name: See :func:`add_prompts`.
        checkpoint: A file, or a state dict. If it has several sets, that of the same name is read.
        prompts: Config of the set. Not needed where the checkpoint has it (:func:`mmprovpt.tuned_state_dict` notes it),
            nor for StaticPrompts and ShallowPrompts, whose shapes say enough.
        trainable: Whether it is to be trained further.

    Returns:
        The set, which is ``backbone.prompts[name]`` from now on.

    Raises:
        ConfigError: See :func:`add_prompts`; or the file holds more than weights.
        CheckpointError: The checkpoint has no such prompts, they do not fit, or were tuned on other frozen weights. The
            backbone is as it was.
    """
    state: Any = checkpoint if isinstance(checkpoint, dict) else load_weights(checkpoint)
    state = state.get('state_dict', state)
    values, prefix, inner = _values(state, name)
    was = backbone.prompts if isinstance(backbone, PromptedBackbone) else None
    noted = _metadata(state, f'{prefix}{PROMPTS}{inner}').get(CONFIG)
    config = prompts or _config(values, noted, len(_blocks(backbone)))
    built = add_prompts(backbone, name, config)
    try:
        fill_prompts(backbone, name, state)
    except Exception:
        remove_prompts(backbone, name)
        if isinstance(was, PromptSet):
            _reconnect(backbone, was)
        raise
    if not trainable:
        built.requires_grad_(False)
    backbone.prompts.train(backbone.training)
    return built


def fill_prompts(backbone: Any, name: str, state: dict) -> None:
    """Load the values of a state dict, which may be small or full, into a set that is there.

    Raises:
        ConfigError, CheckpointError: See :func:`load_prompts`. The set is as it was.
    """
    values, prefix, _ = _values(state, name)
    # First, for it may read the frozen weights from where the checkpoint says they are.
    _check_frozen(backbone, state, prefix, _metadata(state, prefix).get(SOURCE))
    backbone.prompts.find(name).load_state_dict(values)


def set_prompts(backbone: nn.Module, name: str | None) -> None:
    """Choose the set that forwards read which begin from now on, in all threads; None for none.

    Raises:
        ConfigError: There is no such set.
    """
    sets = _sets(backbone)
    sets.find(name)
    sets.chosen = name


def using_prompts(backbone: nn.Module, names: str | None | Sequence[str | None]) -> AbstractContextManager[None]:
    """For the time of a ``with``, choose the sets that forwards in this thread read; nests.

    A forward keeps its choice through its backward, which may come after the ``with``.

    Args:
        backbone: With sets of prompts.
        names: One for all samples, or a list with one for each sample of the batch; None for no prompts.

    Raises:
        ConfigError: There is no such set; or, of the forward, the batch has another number of samples.
    """
    sets = _sets(backbone)
    if names is None or isinstance(names, str):
        return running.choosing(sets, sets.find(names))
    if not isinstance(names, (list, tuple)):
        raise ConfigError(f'using_prompts({names!r}), but it takes a name, None, or a list of these, one per sample')
    return running.choosing(sets, tuple(map(sets.find, names)))


def remove_prompts(backbone: nn.Module, name: str) -> None:
    """Take a set of prompts off; with the last one, the backbone is upstream's again.

    Class, ``requires_grad``, modes and checkpointing are then as they were before the first one came; modes as
    ``train`` or ``eval`` has set them, if they were called since. If the set was chosen, none is.

    Args:
        backbone: With prompts.
        name: Of the set; ``'default'`` for those of :func:`mmprovpt.inject_prompts`.

    Raises:
        ConfigError: There is no such set.
    """
    if isinstance(backbone, PromptedBackbone) and isinstance(backbone.prompts, PromptSet) and name == DEFAULT:
        restore(backbone)
        return
    sets = _sets(backbone)
    sets.find(name or '')
    if len(sets) == 1:
        restore(backbone)
        return
    if sets.chosen == name:
        sets.chosen = None
    del sets[name]


def _sets(backbone: nn.Module) -> PromptSets:
    sets = backbone.prompts if isinstance(backbone, PromptedBackbone) else None
    if isinstance(sets, PromptSets):
        return sets
    has = 'one set of prompts without a name' if isinstance(sets, PromptSet) else 'no prompts'
    raise ConfigError(f'{type(backbone).__name__} has {has}: mmprovpt.add_prompts(backbone, name, dict(type=...)) or '
                      'load_prompts gives it sets to choose from')


def _blocks(backbone: Any) -> list[Block]:
    return known_blocks(backbone) if isinstance(backbone, PromptedBackbone) else find_blocks(backbone)


def _reconnect(backbone: Any, prompts: PromptSet | PromptSets) -> None:
    """Have the blocks of a prompted backbone read other prompts; all else stays."""
    modes = [(module, module.training) for module in backbone.modules()]
    checkpointed = [getattr(block.module, 'checkpointed', False) for block in known_blocks(backbone)]
    disconnect(backbone)
    blocks = known_blocks(backbone)
    connect(backbone, blocks, prompts)
    for block, value in zip(blocks, checkpointed):
        if value:
            block.module.checkpointed = True
    for module, mode in modes:
        module.training = mode


def _values(state: dict, name: str) -> tuple[dict[str, Tensor], str, str]:
    """What a checkpoint has of a set, by its keys in the set; and its place."""
    prefix, inner = _place(state, name)
    start = f'{prefix}{PROMPTS}{inner}'
    return {key[len(start):]: value for key, value in state.items() if key.startswith(start)
            and not key.startswith(f'{start}frozen_')}, prefix, inner


def _metadata(state: dict, prefix: str) -> dict:
    """What PyTorch keeps with a state dict for the module whose keys begin so."""
    return (getattr(state, '_metadata', None) or {}).get(prefix[:-1], {})


def _place(state: dict, name: str) -> tuple[str, str]:
    """What stands before ``prompts.`` in the keys of a checkpoint, and the name of the set, with a dot, or ''."""
    found = []
    for key in state:
        if key.endswith('.tokens') and f'.{key}'.rfind(f'.{PROMPTS}') >= 0:
            prefix, _, rest = f'.{key}'.rpartition(f'.{PROMPTS}')
            found.append((f'{prefix}.'.lstrip('.'), rest.removesuffix('tokens')))
    if len(found) > 1:
        found = [(prefix, inner) for prefix, inner in found if inner == f'{name}.']
    if len(found) != 1:
        given = [key for key in state if key.endswith('.tokens')]
        raise CheckpointError(f'the checkpoint has {len(found)} sets of prompts that could be {name}; it has '
                              f'{", ".join(given) or "no prompts"}')
    return found[0]


def _config(values: dict[str, Tensor], noted: Any, num_blocks: int) -> dict:
    """Of the prompts of a checkpoint. What it notes is a stranger's: it names a registered form and its options."""
    if not {FORM, 'block_index'} <= values.keys():
        raise CheckpointError('the checkpoint does not say of which form its prompts are (it is of an earlier release, '
                              'or was cut): give load_prompts(..., prompts=dict(type=..., num_tokens=...))')
    form, index = bytes(values[FORM].tolist()).decode(), values['block_index']
    if form not in FORMS:
        raise CheckpointError(f'the prompts of the checkpoint are {form}, which is not known here; known are '
                              f'{", ".join(FORMS)}')
    if isinstance(noted, dict):
        return dict(noted, type=form)
    if form not in ('StaticPrompts', 'ShallowPrompts'):
        raise CheckpointError(f'the checkpoint does not say with which options its {form} were built: give '
                              f"load_prompts(..., prompts=dict(type='{form}', num_tokens=..., ...)) as for training")
    counts = torch.bincount(index.clamp_min(0).cpu(), minlength=num_blocks).tolist()
    if len(counts) != num_blocks:
        raise CheckpointError(f'the prompts of the checkpoint belong to {len(counts)} blocks or more, but '
                              f'this backbone has {num_blocks}: it is of another backbone')
    return dict(type=form, num_tokens=len(index) if form == 'ShallowPrompts' else counts)


def _check_frozen(backbone: Any, state: dict, prefix: str, source: dict | None) -> None:
    """Raise CheckpointError unless the frozen weights here are those of the checkpoint, or of its fingerprint."""
    frozen = {key: value for key, value in backbone.frozen_tensors().items() if isinstance(value, Tensor)}
    given = {key: state[prefix + key] for key in frozen if prefix + key in state}
    other = [key for key, value in given.items() if value.is_floating_point()
             and not (value.shape == frozen[key].shape and torch.equal(value.to(frozen[key]), frozen[key]))]
    if other:
        raise CheckpointError(f'the prompts were tuned beside other weights than {type(backbone).__name__} has: '
                              f'{", ".join(other[:5])}{f" and {len(other) - 5} more" if len(other) > 5 else ""}. Load '
                              'those into the backbone first (init_cfg, load_state_dict)')
    absent = {key: value for key, value in frozen.items() if key not in given}
    wanted = state.get(prefix + FINGERPRINT)
    if absent and wanted is None:
        raise CheckpointError('the checkpoint does not say on which frozen weights its prompts were tuned: save it by '
                              'mmprovpt.tuned_state_dict, or load it whole by load_state_dict')
    if len(backbone.prompts) > 1:  # no other weights than those that the others are here for
        backbone._recalled, source = True, None
    if absent:
        backbone._require(wanted, absent, source, state.get(prefix + FILE_FINGERPRINT))
