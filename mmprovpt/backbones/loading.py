"""How a prompted backbone loads: complete or not at all, and never left with random weights silently."""
import hashlib
import logging
import re

import torch
from torch import Tensor, nn

from mmprovpt.attention.support import full_name
from mmprovpt.errors import CheckpointError, ConfigError
from mmprovpt.log import log

PROMPTS = 'prompts.'
# Only in checkpoints of what was tuned: which frozen weights they leave out. It is a tensor of the state dict, so
# that whoever loads one, and by whatever route, is checked.
FINGERPRINT = PROMPTS + 'frozen_sha256'
# The same of what was read from a file: positions that are resized on loading differ between CPUs in their last bits.
FILE_FINGERPRINT = PROMPTS + 'frozen_file_sha256'
# In the metadata that PyTorch keeps with a state dict, under the backbone's name: where those weights are. Some ways
# of inference take init_cfg away from the config, since a full checkpoint makes it superfluous.
SOURCE = 'frozen_init_cfg'
# Norms of the outputs, which checkpoints of classifiers lack. They start as the identity and stay so: what
# reads the features (a convolution, a linear layer) can express any scale and shift of them.
_OUTPUT_NORM = re.compile(r'(norm\d+|ln2)\.(weight|bias)')
# Buffers that follow from the config. MMPretrain's SwinV2 takes them out of whatever it loads.
_RECOMPUTED = re.compile(r'relative_(position_index|coords_table)')
_ADVICE = ('Give the backbone the init_cfg (and img_size and dtype) that it was tuned with, or use a full checkpoint, '
           'which tools/export_prompts.py --merge makes.')
_SWIN = 'mmpretrain.models.backbones.swin_transformer.SwinTransformer'


class CompleteLoading:
    """In front of a frozen backbone's class."""

    def _load_from_state_dict(self, state_dict, prefix, local_metadata, strict, missing_keys, unexpected_keys,
                              error_msgs) -> None:
        """As upstream, for whoever loads (init_cfg, load_from, resume, PyTorch), but complete or not at all.

        Missing prompts are no fault (a checkpoint of upstream has none), nor are missing frozen weights beside
        prompts (a checkpoint of what was tuned), if the frozen weights here are those that it was tuned on.

        Raises:
            CheckpointError: If the checkpoint lacks keys of the frozen backbone, or their shapes do not fit (it names
                the keys), or it was tuned on other frozen weights (it names both fingerprints).
        """
        own = {name: value for name, value in self.state_dict().items() if not name.startswith(PROMPTS)}
        has_prompts = any(key.startswith(prefix + PROMPTS) for key in state_dict)
        only_tuned = has_prompts and (prefix + FINGERPRINT in state_dict
                                      or not any(prefix + name in state_dict for name in own))
        if only_tuned:
            self._add_frozen(state_dict, prefix, local_metadata.get(SOURCE))
        else:
            read = fingerprint_of_file(state_dict, prefix, own)
        _rename_old_keys(self, state_dict, prefix, local_metadata.get('version'))
        super()._load_from_state_dict(
            state_dict, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs)
        for name, value in own.items():
            if _RECOMPUTED.search(name):
                state_dict.setdefault(prefix + name, value)
        self._check_complete(state_dict, prefix)
        if not only_tuned:
            self._frozen_loaded = True
            # Its modules load after it: this is what they will hold.
            self._frozen_file = read, fingerprint({name: state_dict.get(prefix + name, value).to(value.dtype)
                                                   for name, value in self.frozen_tensors().items()})

    def _add_frozen(self, state_dict: dict, prefix: str, source: dict | None) -> None:
        """Complete a checkpoint of what was tuned by the frozen weights here, if they are the right ones.

        Args:
            source: Where the checkpoint says that they are.
        """
        wanted = state_dict.pop(prefix + FINGERPRINT, None)
        of_file = state_dict.pop(prefix + FILE_FINGERPRINT, None)
        frozen = {name: value for name, value in self.frozen_tensors().items() if prefix + name not in state_dict}
        if wanted is None:
            log(f'The checkpoint of {type(self).__name__} has prompts only and does not say which frozen weights '
                      'they were tuned on (mmprovpt.tuned_state_dict would): they are taken to be those here.',
                      logging.WARNING)
        else:
            self._require(wanted, frozen, source, of_file)
        state_dict.update({prefix + name: value for name, value in frozen.items()})

    def _require(self, wanted: Tensor, frozen: dict[str, Tensor], source: dict | None,
                 of_file: Tensor | None = None) -> None:
        """Raise if the frozen weights are not those of this fingerprint, nor are so after ``init_weights``.

        Args:
            source: Replaces an init_cfg that names no checkpoint. It comes from the checkpoint, so nothing of it counts
                but the names of a local file and a prefix.
            of_file: Fingerprint of what they were read from; that is enough.
        """
        wanted, here = _hex(wanted), _hex(fingerprint(frozen))
        if of_file is not None and _is_of_file(self, of_file):
            return
        # Whoever only tests or infers does not initialise. What timm's constructor has loaded, it says by _is_init.
        loaded = getattr(self, '_frozen_loaded', getattr(self, '_is_init', False))
        if here != wanted and not loaded and source and not named_checkpoint(self):
            from mmengine.config import ConfigDict  # only MMEngine's models have an init_cfg
            self.init_cfg, self._is_init = ConfigDict(_local(source)), False
        source = getattr(self, 'init_cfg', None)
        if here != wanted and source and not loaded and not getattr(self, '_recalled', False):
            self._recalled = True  # lest an init_cfg that names such a checkpoint come here again and again
            try:
                self.init_weights()
            except OSError as error:
                raise CheckpointError(f'The checkpoint holds only what was tuned of {type(self).__name__}, and the '
                                   f'frozen weights cannot be read from {source}: {error}\n'
                                   f'{_ADVICE}') from error
            here = wanted if of_file is not None and _is_of_file(self, of_file) else _hex(fingerprint(frozen))
        if here != wanted:
            raise CheckpointError(
                f'The checkpoint holds only what was tuned, on other frozen weights than {type(self).__name__} has:\n'
                f'  sha256 in the checkpoint: {wanted}\n'
                f'  sha256 here:              {here} (init_cfg: {source})\n{_ADVICE}')

    def _check_complete(self, state_dict: dict, prefix: str) -> None:
        own = {name: value for name, value in self.state_dict().items()
               if not name.startswith(PROMPTS) and value.is_floating_point()}
        missing = [prefix + name for name in own if prefix + name not in state_dict]
        unfit = [f'{prefix}{name}: {tuple(state_dict[prefix + name].shape)}, expected {tuple(value.shape)}'
                 for name, value in own.items()
                 if prefix + name in state_dict and state_dict[prefix + name].shape != value.shape]
        identity = [key for key in missing if _OUTPUT_NORM.fullmatch(key[len(prefix):])]
        missing = [key for key in missing if key not in identity]
        if missing or unfit:
            raise CheckpointError(_complaint(type(self).__name__, missing, unfit, list(state_dict)))
        if identity:
            log(f'The checkpoint has no {", ".join(identity)}: these norms stay as they are (the identity, '
                'where they are new).')


def fingerprint(tensors: dict[str, Tensor]) -> Tensor:
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


def fingerprint_of_file(state_dict: dict, prefix: str, own: dict[str, Tensor]) -> Tensor:
    """(32,) uint8, SHA-256 of a backbone's weights as they were read, and of the shapes that they are loaded into.

    Args:
        state_dict: Before anything was renamed or resized; more than the backbone's.
        prefix: Of the backbone's keys.
        own: The backbone's tensors without prompts; their shapes count, so that another image size is another one.
    """
    read = {key[len(prefix):]: value for key, value in state_dict.items()
            if key.startswith(prefix) and not key.startswith(prefix + PROMPTS) and isinstance(value, Tensor)}
    shapes = [(name, tuple(value.shape)) for name, value in sorted(own.items()) if value.is_floating_point()]
    digest = hashlib.sha256(f'{shapes}'.encode() + bytes(fingerprint(read).tolist()))
    return torch.tensor(list(digest.digest()), dtype=torch.uint8)


def loaded_file(backbone: nn.Module, now: Tensor) -> Tensor | None:
    """Fingerprint of what the frozen weights were read from; None if they were not, or were changed since.

    Args:
        now: Fingerprint of all frozen tensors.
    """
    file, after = getattr(backbone, '_frozen_file', (None, None))
    return file if file is not None and torch.equal(after, now) else None


def _is_of_file(backbone: nn.Module, wanted: Tensor) -> bool:
    file = loaded_file(backbone, fingerprint(backbone.frozen_tensors()))
    return file is not None and torch.equal(file, wanted.cpu())


def named_checkpoint(backbone: nn.Module) -> dict | None:
    """The init_cfg of a backbone, if it names a checkpoint, in plain types."""
    cfg = getattr(backbone, 'init_cfg', None)
    if not isinstance(cfg, dict) or not isinstance(cfg.get('checkpoint'), str):
        return None
    return dict(type='Pretrained', **{key: cfg[key] for key in ('checkpoint', 'prefix') if cfg.get(key)})


def _local(source: dict) -> dict:
    """Where a checkpoint says that its frozen weights are, if that is a file here.

    Raises:
        ConfigError: It is an address: a stranger does not decide what is fetched.
    """
    given = {key: value for key, value in source.items() if key in ('checkpoint', 'prefix') and isinstance(value, str)}
    if 'checkpoint' not in given or '://' in given['checkpoint']:
        raise ConfigError(f'the checkpoint says that its frozen weights are at {source.get("checkpoint")!r}. That is '
                          'no file here, and only your own config can have it fetched: give the backbone '
                          "init_cfg=dict(type='Pretrained', checkpoint=...)")
    return dict(type='Pretrained', **given)


def _hex(digest: Tensor) -> str:
    return bytes(digest.tolist()).hex()


def _rename_old_keys(backbone: nn.Module, state_dict: dict, prefix: str, version: int | None) -> None:
    """What MMPretrain's Swin does to keys of its earlier versions, and only if the class is its very own."""
    if full_name(type(backbone).upstream) != _SWIN:
        return
    own = [key for key in state_dict if key.startswith(prefix)]
    if version is None or version < 2:
        for key in own:
            if key.startswith(f'{prefix}norm.'):
                last = f'{prefix}norm{len(backbone.stages) - 1}.'
                state_dict[key.replace(f'{prefix}norm.', last, 1)] = state_dict.pop(key)
    if version is None or version < 3:
        for key in own:
            if 'attn_mask' in key:
                state_dict.pop(key, None)


def _complaint(backbone: str, missing: list, unfit: list, given: list) -> str:
    lines = [f'The checkpoint does not fit the frozen {backbone}, which would be left with random weights.']
    for title, keys in (('Missing keys', missing), ('Shapes that do not fit', unfit), ('It holds', given)):
        if keys:
            more = f' and {len(keys) - 10} more' if len(keys) > 10 else ''
            lines.append(f'{title}: ' + ', '.join(keys[:10]) + more)
    lines.append('Give a checkpoint of this backbone (arch, patch, window and image size) in its key layout.')
    return '\n'.join(lines)
