"""What becomes of a backbone that has prompts: frozen, in eval mode, and never left with random weights silently."""
import logging
import re

import torch
from mmengine.logging import print_log
from torch import nn
from torch.utils.checkpoint import checkpoint

POOL = 'prompts.'
# Norms of the outputs, which checkpoints of classifiers lack. They start as the identity and stay so: what
# reads the features (a convolution, a linear layer) can express any scale and shift of them.
_OUTPUT_NORM = re.compile(r'(norm\d+|ln2)\.(weight|bias)')


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

    def _load_from_state_dict(self, state_dict, prefix, local_metadata, strict, missing_keys, unexpected_keys,
                              error_msgs) -> None:
        """As upstream, for whoever loads (init_cfg, load_from, resume, PyTorch), but complete or not at all.

        Missing prompts are no fault (a checkpoint of upstream has none), nor are missing frozen weights beside
        prompts (a checkpoint of what was tuned).

        Raises:
            RuntimeError: If the checkpoint lacks keys of the frozen backbone, or their shapes do not fit; it
                names the keys.
        """
        prompted = type(self)
        # Upstream converts old keys only if the class is its own (mmpretrain's Swin).
        self.__class__ = prompted.upstream
        try:
            prompted.upstream._load_from_state_dict(self, state_dict, prefix, local_metadata, strict, missing_keys,
                                                    unexpected_keys, error_msgs)
        finally:
            self.__class__ = prompted
        own = {name: value for name, value in self.state_dict().items() if not name.startswith(POOL)}
        own = {name: value for name, value in own.items() if value.is_floating_point()}
        has_prompts = any(key.startswith(prefix + POOL) for key in state_dict)
        present = [name for name in own if prefix + name in state_dict]
        if has_prompts and not present:
            return
        missing = [prefix + name for name in own if prefix + name not in state_dict]
        unfit = [f'{prefix}{name}: {tuple(state_dict[prefix + name].shape)}, expected {tuple(own[name].shape)}'
                 for name in present if state_dict[prefix + name].shape != own[name].shape]
        identity = [key for key in missing if _OUTPUT_NORM.fullmatch(key[len(prefix):])]
        missing = [key for key in missing if key not in identity]
        if missing or unfit:
            raise RuntimeError(_complaint(type(self).__name__, missing, unfit, list(state_dict)))
        if identity:
            print_log(f'The checkpoint has no {", ".join(identity)}: these norms stay as they are (the identity, '
                      'where they are new).', 'current')
        if not has_prompts:
            # strict=True is for what the checkpoint could have.
            state_dict.update({prefix + POOL + name: value for name, value in self.prompts.state_dict().items()})
        self._frozen_loaded = True


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
