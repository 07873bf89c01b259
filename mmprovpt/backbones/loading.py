"""How a prompted backbone loads: complete or not at all, and never left with random weights silently."""
import hashlib
import logging
import re
from typing import NamedTuple

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
           'which `mmprovpt export-prompts --merge` makes.')
_SWIN = 'mmpretrain.models.backbones.swin_transformer.SwinTransformer'


class Loaded(NamedTuple):
    """What a backbone remembers of the last full load.

    Attributes:
        of_file: (32,) uint8, fingerprint of what was read.
        held: (32,) uint8, fingerprint of the frozen tensors then.
        shapes: Theirs, by name.
    """
    of_file: Tensor
    held: Tensor
    shapes: dict[str, torch.Size]


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
            read = _of_backbone(state_dict, prefix)
            of_file, versions = fingerprint(read), {name: value._version for name, value in read.items()}
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
            held = {name: state_dict.get(prefix + name, value).to(value.dtype)
                    for name, value in self.frozen_tensors().items()}
            # Mostly nothing was renamed, resized or cast, and all is known already.
            same = _floats(held).keys() == _floats(read).keys() and all(
                held[name] is read[name] and value._version == versions[name] for name, value in _floats(held).items())
            self._loaded = Loaded(_with_shapes(of_file, own), of_file if same else fingerprint(held),
                                  {name: value.shape for name, value in held.items()})

    def _add_frozen(self, state_dict: dict, prefix: str, source: dict | None) -> None:
        """Complete a checkpoint of what was tuned by the frozen weights here, if they are the right ones.

        Args:
            source: Where the checkpoint says that they are.
        """
        wanted = state_dict.pop(prefix + FINGERPRINT, None)
        of_file = state_dict.pop(prefix + FILE_FINGERPRINT, None)
        frozen = {name: value for name, value in self.frozen_tensors().items() if prefix + name not in state_dict}
        if not all(isinstance(value, Tensor) for value in frozen.values()):
            raise CheckpointError(f'{type(self).__name__} is quantized already: load the checkpoint first, then '
                                  'quantize the model')
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
        wanted = _hex(wanted)
        here = self._here(frozen, wanted, of_file)
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
            here = self._here(frozen, wanted, of_file)
        if here != wanted:
            raise CheckpointError(
                f'The checkpoint holds only what was tuned, on other frozen weights than {type(self).__name__} has:\n'
                f'  sha256 in the checkpoint: {wanted}\n'
                f'  sha256 here:              {here} (init_cfg: {source})\n{_ADVICE}')

    def _here(self, frozen: dict[str, Tensor], wanted: str, of_file: Tensor | None) -> str:
        """The fingerprint of frozen weights here, or ``wanted`` if they were read from the right file."""
        here, file = frozen_fingerprints(self, frozen)
        return wanted if None not in (file, of_file) and torch.equal(file, of_file.cpu()) else _hex(here)

    def _check_complete(self, state_dict: dict, prefix: str) -> None:
        own = _floats({name: value for name, value in self.state_dict().items() if not name.startswith(PROMPTS)})
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
    for name, value in sorted(_floats(tensors).items()):
        digest.update(f'{name} {value.dtype} {tuple(value.shape)};'.encode())
        digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return torch.tensor(list(digest.digest()), dtype=torch.uint8)


def frozen_fingerprints(backbone: nn.Module, frozen: dict[str, Tensor]) -> tuple[Tensor, Tensor | None]:
    """Fingerprints of frozen weights, and of the file that they were read from (None if changed since, or never read).

    Of weights that quantization has packed, or that are sharded, it is what they were when they were loaded: their
    own bytes are other ones, and say nothing to the plain model.

    Args:
        frozen: The backbone's ``frozen_tensors()``, or those that count.

    Raises:
        CheckpointError: They are packed or sharded and were not loaded since prompts were injected, or some of them
            were frozen then and are trained now.
    """
    loaded = getattr(backbone, '_loaded', None)
    shapes = loaded.shapes if loaded else {}
    # FSDP's pieces are plain tensors, but flat.
    packed = [name for name, value in frozen.items() if type(value) not in (Tensor, nn.Parameter)
              or value.dim() == 1 and value.shape != shapes.get(name, value.shape)]
    if not packed:
        now = fingerprint(frozen)
        return now, loaded.of_file if loaded and torch.equal(loaded.held, now) else None
    free = [name for name, parameter in backbone.named_parameters() if parameter.requires_grad and name in shapes]
    if loaded is None or free:
        reason = f'{free[0]} was set free since loading' if free else 'none were loaded'
        raise CheckpointError(
            f'{packed[0]} of {type(backbone).__name__} is quantized or sharded, and which weights it was made of is '
            f'not known: {reason}. Load them (init_cfg, load_state_dict) when prompts are injected and before they are '
            'packed, or save a full checkpoint')
    return loaded.held, loaded.of_file


def _of_backbone(state_dict: dict, prefix: str) -> dict[str, Tensor]:
    """The tensors below a prefix, without prompts, by their names in the backbone."""
    return {key[len(prefix):]: value for key, value in state_dict.items()
            if key.startswith(prefix) and not key.startswith(prefix + PROMPTS) and isinstance(value, Tensor)}


def _with_shapes(of_file: Tensor, own: dict[str, Tensor]) -> Tensor:
    """(32,) uint8, of what was read and of the shapes that it is loaded into: another image size is another one."""
    shapes = [(name, tuple(value.shape)) for name, value in sorted(_floats(own).items())]
    digest = hashlib.sha256(f'{shapes}'.encode() + bytes(of_file.tolist()))
    return torch.tensor(list(digest.digest()), dtype=torch.uint8)


def _floats(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    # What quantization packs is no tensor.
    return {name: value for name, value in tensors.items() if isinstance(value, Tensor) and value.is_floating_point()}


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
