"""What a backbone was before it got prompts, and the way back."""
from typing import Any, NamedTuple

from torch import nn

from mmprovpt.attention import running
from mmprovpt.attention.support import Block
from mmprovpt.errors import ConfigError

from .adopt import release

# What injection, loading and running leave in the dicts of modules, beside what it takes out.
_CONNECTED = ('place', '_checkpointed', 'norm_first', 'entrance_to')
_OURS = (*_CONNECTED, '_before', '_loaded', '_frozen_loaded', '_recalled')


class Before(NamedTuple):
    """In plain types, so that it is copied and pickled with the backbone.

    Attributes:
        blocks: What ``find_blocks`` has found, with the names of modules in their places.
        requires_grad: Of each parameter.
        modes: ``training`` of each module; None where ``train`` or ``eval`` was called since.
        with_cp: Of the blocks that have it.
        grad_checkpointing: Names of the modules in which it was on.
    """
    blocks: list[Any]
    requires_grad: dict[str, bool]
    modes: dict[str, bool] | None
    with_cp: dict[str, bool]
    grad_checkpointing: list[str]


def take_before(backbone: nn.Module, blocks: list[Block]) -> Before:
    """Of a backbone whose blocks are upstream's."""
    names = {module: name for name, module in backbone.named_modules()}
    return Before(
        [block._replace(module=None, attention=names[block.attention], backbone=names[block.backbone])
         for block in blocks],
        {name: parameter.requires_grad for name, parameter in backbone.named_parameters()},
        {name: module.training for module, name in names.items()},
        {block.name: vars(block.module)['with_cp'] for block in blocks if 'with_cp' in vars(block.module)},
        [name for module, name in names.items() if getattr(module, 'grad_checkpointing', False) is True])


def known_blocks(backbone: Any) -> list[Block]:
    """What ``find_blocks`` has found in a backbone that is prompted now.

    Raises:
        ConfigError: Its modules have other names by now.
    """
    modules = dict(backbone.named_modules())
    found = backbone._before.blocks
    gone = [name for each in found for name in (each.name, each.attention, each.backbone) if name not in modules]
    if gone:
        raise ConfigError(f'{type(backbone).__name__} has no {gone[0]} any more: something has wrapped or replaced it '
                          'since prompts came. Add and remove sets before that')
    return [each._replace(module=modules[each.name], attention=modules[each.attention],
                          backbone=modules[each.backbone]) for each in found]


def disconnect(backbone: Any) -> None:
    """Take prompts off, and give all modules inside a backbone, but not itself, their upstream classes back."""
    del backbone.prompts
    for module in backbone.modules():
        if module is not backbone:
            release(module)
            for name in _CONNECTED:
                vars(module).pop(name, None)


def restore(backbone: Any) -> None:
    """Make a prompted backbone what it was, to its flags; what was loaded or trained of it stays.

    Raises:
        ConfigError: Its modules have other names by now.
    """
    known_blocks(backbone)
    before: Before = backbone._before
    disconnect(backbone)
    release(backbone)
    for name in _OURS:
        vars(backbone).pop(name, None)
    modules = dict(backbone.named_modules())
    for name, value in before.with_cp.items():
        modules[name].with_cp = value
    for name in before.grad_checkpointing:
        modules[name].grad_checkpointing = True
    if before.modes is None:
        backbone.train(backbone.training)
    else:
        for name, mode in before.modes.items():
            modules[name].training = mode
    for name, parameter in backbone.named_parameters():
        parameter.requires_grad_(before.requires_grad.get(name, parameter.requires_grad))
    for module in modules.values():
        for number, hook in list(module._forward_hooks.items()):
            if hook is running.note_grid:
                del module._forward_hooks[number]
