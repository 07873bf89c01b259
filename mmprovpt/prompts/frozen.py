"""What becomes of a backbone that has prompts: frozen, in eval mode, and never left with random weights silently."""
import hashlib
import logging
import re
from collections import OrderedDict
from typing import Dict, Optional

import torch
from mmengine.config import ConfigDict
from mmengine.logging import print_log
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

POOL = 'prompts.'
# Only in checkpoints of what was tuned: which frozen weights they leave out. It is a tensor of the state dict, so
# that whoever loads one, and by whatever route, is checked.
FINGERPRINT = POOL + 'frozen_sha256'
# In the metadata that PyTorch keeps with a state dict, under the backbone's name: where those weights are. Some ways
# of inference take init_cfg away from the config, since a full checkpoint makes it superfluous.
SOURCE = 'frozen_init_cfg'
# Norms of the outputs, which checkpoints of classifiers lack. They start as the identity and stay so: what
# reads the features (a convolution, a linear layer) can express any scale and shift of them.
_OUTPUT_NORM = re.compile(r'(norm\d+|ln2)\.(weight|bias)')
_ADVICE = ('Give the backbone the init_cfg (and img_size and dtype) that it was tuned with, or use a full checkpoint, '
           'which tools/export_prompts.py --merge makes.')


class FrozenBackbone:
    """In front of a backbone's class, by ``inject_prompts``."""

    def train(self, mode: bool = True) -> nn.Module:
        """Only the prompts follow ``mode``: dropout and drop path in a frozen backbone are noise."""
        super().train(mode)
        for name, child in self.named_children():
            if f'{name}.' != POOL:
                child.eval()
        return self

    def init_weights(self, *args, **kwargs) -> None:
        """As upstream; says so if the frozen weights come from no checkpoint."""
        # timm's pre-trained weights are loaded by the constructor, which says so by this.
        self._frozen_loaded = getattr(self, '_is_init', False)
        try:
            super().init_weights(*args, **kwargs)
        except IndexError as error:  # mmdet, for a checkpoint none of whose keys starts with 'backbone.'
            raise RuntimeError(f'{self.init_cfg} holds no weights for {type(self).__name__}: no key starts with '
                               "'backbone.' (is it in the layout of another library? mmdet's Swin reads the layout "
                               "of Swin's authors with convert_weights=True)") from error
        if not self._frozen_loaded:
            print_log(
                f'{type(self).__name__} is frozen, and its init_cfg loads no checkpoint: unless load_from or '
                'resume does, prompts will be tuned on random weights.', 'current', level=logging.WARNING)

    def frozen_tensors(self) -> Dict[str, Tensor]:
        """What nothing trains, by its name here: what a checkpoint of what was tuned leaves out."""
        return {name: value for name, value in self.state_dict(keep_vars=True).items()
                if not name.startswith(POOL) and not value.requires_grad}

    def _load_from_state_dict(self, state_dict, prefix, local_metadata, strict, missing_keys, unexpected_keys,
                              error_msgs) -> None:
        """As upstream, for whoever loads (init_cfg, load_from, resume, PyTorch), but complete or not at all.

        Missing prompts are no fault (a checkpoint of upstream has none), nor are missing frozen weights beside
        prompts (a checkpoint of what was tuned), if the frozen weights here are those that it was tuned on.

        Raises:
            RuntimeError: If the checkpoint lacks keys of the frozen backbone, or their shapes do not fit (it names
                the keys), or it was tuned on other frozen weights (it names both fingerprints).
        """
        own = {name: value for name, value in self.state_dict().items() if not name.startswith(POOL)}
        has_prompts = any(key.startswith(prefix + POOL) for key in state_dict)
        only_tuned = has_prompts and (prefix + FINGERPRINT in state_dict
                                      or not any(prefix + name in state_dict for name in own))
        if only_tuned:
            self._add_frozen(state_dict, prefix, local_metadata.get(SOURCE))
        prompted = type(self)
        # Upstream converts old keys only if the class is its own (mmpretrain's Swin).
        self.__class__ = prompted.upstream
        try:
            prompted.upstream._load_from_state_dict(self, state_dict, prefix, local_metadata, strict, missing_keys,
                                                    unexpected_keys, error_msgs)
        finally:
            self.__class__ = prompted
        self._check_complete(state_dict, prefix)
        if not has_prompts:
            # strict=True is for what the checkpoint could have.
            state_dict.update({prefix + POOL + name: value for name, value in self.prompts.state_dict().items()})
        if not only_tuned:
            self._frozen_loaded = True

    def _add_frozen(self, state_dict: dict, prefix: str, source: Optional[dict]) -> None:
        """Complete a checkpoint of what was tuned by the frozen weights here, if they are the right ones.

        Args:
            source: Where the checkpoint says that they are.
        """
        wanted = state_dict.pop(prefix + FINGERPRINT, None)
        frozen = {name: value for name, value in self.frozen_tensors().items() if prefix + name not in state_dict}
        if wanted is None:
            print_log(f'The checkpoint of {type(self).__name__} has prompts only and does not say which frozen weights '
                      'they were tuned on (mmprovpt.tuned_state_dict would): they are taken to be those here.',
                      'current', level=logging.WARNING)
        else:
            self._require(wanted, frozen, source)
        state_dict.update({prefix + name: value for name, value in frozen.items()})

    def _require(self, wanted: Tensor, frozen: Dict[str, Tensor], source: Optional[dict]) -> None:
        """Raise if the frozen weights are not those of this fingerprint, nor are so after ``init_weights``.

        Args:
            source: Replaces an init_cfg that names no checkpoint.
        """
        wanted, here = _hex(wanted), _hex(fingerprint(frozen))
        # Whoever only tests or infers does not initialise. What timm's constructor has loaded, it says by _is_init.
        loaded = getattr(self, '_frozen_loaded', getattr(self, '_is_init', False))
        if here != wanted and not loaded and source and not _named_checkpoint(self):
            self.init_cfg, self._is_init = ConfigDict(source), False
        source = getattr(self, 'init_cfg', None)
        if here != wanted and source and not loaded and not getattr(self, '_recalled', False):
            self._recalled = True  # lest an init_cfg that names such a checkpoint come here again and again
            try:
                self.init_weights()
            except OSError as error:
                raise RuntimeError(f'The checkpoint holds only what was tuned of {type(self).__name__}, and the frozen '
                                   f'weights cannot be read from {source}: {error}\n'
                                   f'{_ADVICE}') from error
            here = _hex(fingerprint(frozen))
        if here != wanted:
            raise RuntimeError(
                f'The checkpoint holds only what was tuned, on other frozen weights than {type(self).__name__} has:\n'
                f'  sha256 in the checkpoint: {wanted}\n'
                f'  sha256 here:              {here} (init_cfg: {source})\n{_ADVICE}')

    def _check_complete(self, state_dict: dict, prefix: str) -> None:
        own = {name: value for name, value in self.state_dict().items()
               if not name.startswith(POOL) and value.is_floating_point()}
        missing = [prefix + name for name in own if prefix + name not in state_dict]
        unfit = [f'{prefix}{name}: {tuple(state_dict[prefix + name].shape)}, expected {tuple(value.shape)}'
                 for name, value in own.items()
                 if prefix + name in state_dict and state_dict[prefix + name].shape != value.shape]
        identity = [key for key in missing if _OUTPUT_NORM.fullmatch(key[len(prefix):])]
        missing = [key for key in missing if key not in identity]
        if missing or unfit:
            raise RuntimeError(_complaint(type(self).__name__, missing, unfit, list(state_dict)))
        if identity:
            print_log(f'The checkpoint has no {", ".join(identity)}: these norms stay as they are (the identity, '
                      'where they are new).', 'current')


def fingerprint(tensors: Dict[str, Tensor]) -> Tensor:
    """(32,) uint8, SHA-256 of names, dtypes, shapes and bytes, on whatever device they are.

    Integers are left out: those in a backbone (indices of positions, counts of batches) follow from its config, and
    libraries have changed which of them they store. 86 M float32 take about 0.3 s.
    """
    digest = hashlib.sha256()
    for name, value in sorted(tensors.items()):
        if value.is_floating_point():
            digest.update(f'{name} {value.dtype} {tuple(value.shape)};'.encode())
            digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return torch.tensor(list(digest.digest()), dtype=torch.uint8)


def tuned_state_dict(model: nn.Module, state_dict: Optional[dict] = None, prefix: str = '') -> dict:
    """A state dict without the frozen weights of prompted backbones, but with their fingerprints.

    Whatever else there is stays: prompts and their blocks, necks, heads, statistics of their norms, and parameters
    of the backbone that somebody has set free again. Where the frozen weights came from, if the backbone's init_cfg
    names a checkpoint, is noted in the state dict's metadata, in plain types.

    Args:
        model: Holds prompted backbones, or is one.
        state_dict: Of the model, or of a wrapper that puts ``prefix`` in front of its keys; by default
            ``model.state_dict()``. It is not changed.
        prefix: E.g. ``'module.'`` for the average that EMAHook keeps.

    Raises:
        ValueError: If nothing in the model has prompts by :func:`mmprovpt.inject_prompts`.
    """
    state_dict = model.state_dict() if state_dict is None else state_dict
    kept = OrderedDict(state_dict)
    # It has versions of modules, too, by which they convert old keys.
    kept._metadata = OrderedDict(getattr(state_dict, '_metadata', None) or {})
    for name, backbone in prompted_backbones(model).items():
        place = f'{prefix}{name}.' if name else prefix
        frozen = backbone.frozen_tensors()
        for key in frozen:
            kept.pop(place + key, None)
        kept[place + FINGERPRINT] = fingerprint(frozen)
        source = _named_checkpoint(backbone)
        if source:
            kept._metadata[place[:-1]] = {**kept._metadata.get(place[:-1], {}), SOURCE: source}
    return kept


def prompted_backbones(model: nn.Module) -> Dict[str, FrozenBackbone]:
    """Those in a model, by name; ValueError if there is none."""
    found = {name: module for name, module in model.named_modules() if isinstance(module, FrozenBackbone)}
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
            if theirs[key].device == value.device:
                theirs[key].data = value.data


def _named_checkpoint(backbone: nn.Module) -> Optional[dict]:
    """The init_cfg of a backbone, if it names a checkpoint, in plain types."""
    cfg = getattr(backbone, 'init_cfg', None)
    if not isinstance(cfg, dict) or not isinstance(cfg.get('checkpoint'), str):
        return None
    return dict(type='Pretrained', **{key: cfg[key] for key in ('checkpoint', 'prefix') if cfg.get(key)})


def _hex(digest: Tensor) -> str:
    return bytes(digest.tolist()).hex()


class CheckpointedBlock:
    """In front of a block with ``with_cp=True``, whose own checkpointing it replaces.

    Upstream's is the re-entrant kind: it runs a backward of its own for each block, in which all blocks' prompts,
    being one parameter, become ready again and again. DDP forbids that.
    """

    def forward(self, *args, **kwargs):
        """As upstream."""
        if not torch.is_grad_enabled():
            return super().forward(*args, **kwargs)
        return checkpoint(super().forward, *args, use_reentrant=False, **kwargs)


def _complaint(backbone: str, missing: list, unfit: list, given: list) -> str:
    lines = [f'The checkpoint does not fit the frozen {backbone}, which would be left with random weights.']
    for title, keys in (('Missing keys', missing), ('Shapes that do not fit', unfit), ('It holds', given)):
        if keys:
            more = f' and {len(keys) - 10} more' if len(keys) > 10 else ''
            lines.append(f'{title}: ' + ', '.join(keys[:10]) + more)
    lines.append('Give a checkpoint of this backbone (arch, patch, window and image size) in its key layout.')
    return '\n'.join(lines)
