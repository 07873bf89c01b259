"""Checkpoints of what was tuned: without frozen weights, but with their hash (docs/how-to/small_checkpoints.md)."""
from collections import OrderedDict
from typing import Any

from torch import Tensor, nn

from mmprovpt.errors import ConfigError
from mmprovpt.prompts import PromptSet

from .loading import FILE_FINGERPRINT, FINGERPRINT, PROMPTS, SOURCE, frozen_fingerprints, named_checkpoint
from .prompted import PromptedBackbone

_FSDP = '_fsdp_wrapped_module'


def tuned_state_dict(model: nn.Module, state_dict: dict | None = None, prefix: str = '',
                     prompts: str | None = None) -> dict:
    """A state dict without the frozen weights of prompted backbones, but with their fingerprints.

    Whatever else there is stays: prompts and their blocks, necks, heads, statistics of their norms, and parameters
    of the backbone that somebody has set free again. Where the frozen weights came from, if the backbone's init_cfg
    names a checkpoint, is noted in the state dict's metadata, in plain types.

    Args:
        model: Holds prompted backbones, or is one.
        state_dict: Of the model, or of a wrapper that puts ``prefix`` in front of its keys; by default
            ``model.state_dict()``. It is not changed.
        prefix: E.g. ``'module.'`` for the average that EMAHook keeps.
        prompts: Of backbones with several sets, the name of the one that is kept, and loses its name: the result is
            that of a backbone with this set alone. None: all are kept.

    Raises:
        ValueError: If nothing in the model has prompts by :func:`mmprovpt.inject_prompts`.
        ConfigError: If a backbone has no set called ``prompts``.
        CheckpointError: If frozen weights are quantized or sharded, and nothing knows which they were.
    """
    state_dict = model.state_dict() if state_dict is None else state_dict
    kept = OrderedDict(state_dict)
    # It has versions of modules, too, by which they convert old keys.
    kept._metadata = OrderedDict(getattr(state_dict, '_metadata', None) or {})
    for name, backbone in prompted_backbones(model).items():
        # FSDP puts modules of its own in between, and leaves them out of the keys.
        place = ''.join([prefix, *(f'{part}.' for part in name.split('.') if part not in ('', _FSDP))])
        frozen = backbone.frozen_tensors()
        for key in frozen:
            kept.pop(place + key, None)
        if prompts is not None:
            _keep_one(kept, place + PROMPTS, backbone.prompts, prompts)
        kept[place + FINGERPRINT], file = frozen_fingerprints(backbone, frozen)
        if file is not None:
            kept[place + FILE_FINGERPRINT] = file
        source = named_checkpoint(backbone)
        if source:
            kept._metadata[place[:-1]] = {**kept._metadata.get(place[:-1], {}), SOURCE: source}
    return kept


def _keep_one(state: Any, prefix: str, prompts: nn.Module, name: str) -> None:
    """Leave of several sets one, without its name."""
    if isinstance(prompts, PromptSet):
        raise ConfigError(f'prompts={name!r}, but the backbone has one set of prompts, which has no name: leave it out')
    prompts.find(name)
    for each in prompts:
        for tensors in (state, state._metadata):
            for key in [key for key in tensors if f'{key}.'.startswith(f'{prefix}{each}.')]:
                value = tensors.pop(key)
                if each == name:
                    tensors[f'{prefix}{key[len(prefix) + len(each) + 1:]}'.rstrip('.')] = value


def prompted_backbones(model: nn.Module) -> dict[str, PromptedBackbone]:
    """Those in a model, by name; ValueError if there is none."""
    found = {name: module for name, module in model.named_modules() if isinstance(module, PromptedBackbone)}
    if not found:
        raise ValueError(f'{type(model).__name__} has no backbone with prompts, so nothing of it can be left out of a '
                         'checkpoint')
    return found


def share_frozen(model: nn.Module, copy: nn.Module) -> None:
    """Have a copy of a model read the model's own frozen weights, where they are on one device."""
    copies = dict(copy.named_modules())
    for name, backbone in prompted_backbones(model).items():
        theirs = copies[name].frozen_tensors()
        for key, value in backbone.frozen_tensors().items():
            if isinstance(value, Tensor) and theirs[key].device == value.device:
                theirs[key].data = value.data
