"""How a prompted backbone behaves: where its forward begins, what trains in it, what cannot be done to it."""
import logging
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from mmprovpt.attention import PromptedBlock, running
from mmprovpt.errors import CheckpointError
from mmprovpt.log import log
from mmprovpt.prompts import PromptSet, PromptSets
from mmprovpt.trust import check_only_weights

from .loading import PROMPTS, CompleteLoading, named_checkpoint


class Entrance:
    """In front of the class of a module whose forward runs prompted blocks: opens the record of a forward."""

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Checkpoint each block, or no longer; ours replaces upstream's, which would lose what the record holds."""
        for module in self.modules():
            if isinstance(module, PromptedBlock):
                module.checkpointed = enable

    def _prompts(self) -> PromptSet | PromptSets:
        own = self._modules.get('prompts')
        return self.entrance_to[0] if own is None else own

    def _within(self, forward: Callable, args: tuple, kwargs: dict):
        """Call ``forward`` within the record that is open, or else within one of its own."""
        if running.current(self._prompts()) is not None:
            return forward(*args, **kwargs)
        return self._enter(forward, args, kwargs)

    @running.uncompiled
    def _enter(self, forward: Callable, args: tuple, kwargs: dict):
        prompts = self._prompts()
        if getattr(self, '_is_replica', False):
            raise RuntimeError('nn.DataParallel copies a backbone, but its blocks would go on reading the prompts of '
                               'the original: use DistributedDataParallel (`mmprovpt dist-train`)')
        samples = next((value for value in (*args, *kwargs.values()) if isinstance(value, Tensor)), None)
        reader = prompts.reader(None if samples is None else samples.shape[0])
        for each in reader.sets:
            self._require_values(each)
        if torch.is_grad_enabled() and self.training and reader.sets and not reader.wants_grad:
            self._require_trained_prompts(reader)
        if self.training and reader.wants_grad and running.is_checkpointed_in_vain():
            raise RuntimeError('Re-entrant checkpointing of the whole backbone, whose input needs no gradient, leaves '
                               'the prompts without one: use checkpoint(use_reentrant=False), or checkpoint the blocks '
                               'by with_cp=True in the config or backbone.set_grad_checkpointing()')
        return running.enter(prompts, reader, forward, args, kwargs)

    def _require_values(self, prompts: PromptSet) -> None:
        if self.training:
            prompts.awaits_training = False
        elif prompts.awaits_training and len(prompts.tokens):
            raise CheckpointError('The prompts of this backbone are as they were drawn: the checkpoint that was loaded '
                                  'has none (it is of full fine-tuning, or of the library), and nothing was trained '
                                  'since. Load the checkpoint of a prompted model, or train first; '
                                  'prompts.reset_parameters() says that you mean it')

    def _require_trained_prompts(self, reader: Any) -> None:
        """Prompts may be frozen, but not by accident, beside what is trained in the same backbone."""
        if not any(len(each.tokens) for each in reader.sets):
            return
        others = [each for each in self._prompts().sets if each.wants_grad]
        if others:
            raise RuntimeError('The set of prompts that this forward reads is frozen, while others of this backbone '
                               'train: choose one of those (set_prompts, using_prompts), freeze them, or call the '
                               'backbone in eval mode')
        if any(parameter.requires_grad for parameter in self.parameters()):
            raise RuntimeError(
                'Prompts are frozen while other parameters of this backbone train. Something has frozen them without '
                "knowing them; MMPretrain's LoRAModel does, and leaves them out of its state dict, too. Inject prompts "
                'into the backbone that has LoRA already: mmprovpt.inject_prompts(model.backbone.module, '
                'dict(type=...)). If you mean it, freeze the other parameters, or call the backbone in eval mode')


class TIMMEntrance(Entrance):
    """In front of a timm model, which has several ways in, one calling the other."""

    def forward(self, *args, **kwargs):
        """As upstream."""
        return self._within(super().forward, args, kwargs)

    def forward_features(self, *args, **kwargs):
        """As upstream."""
        return self._within(super().forward_features, args, kwargs)

    def forward_intermediates(self, *args, **kwargs):
        """As upstream."""
        return self._within(super().forward_intermediates, args, kwargs)


class PromptedBackbone(CompleteLoading, Entrance):
    """In front of a backbone's class, by ``inject_prompts``: frozen but for its ``prompts``.

    Attributes:
        prompts (mmprovpt.PromptSet or mmprovpt.PromptSets): What is trained. It cannot be replaced by another one.
    """

    @running.uncompiled  # what it calls is compiled again: here owners become host tensors, in the one break of a graph
    def forward(self, *args, **kwargs):
        """As upstream."""
        return self._enter(super().forward, args, kwargs)

    def __setattr__(self, name, value) -> None:
        if name == 'prompts' and value is not self.__dict__.get('_modules', {}).get('prompts', value):
            raise AttributeError('backbone.prompts cannot be replaced, for its blocks read the first ones: load values '
                                 'into it (load_state_dict), or inject prompts into a new backbone')
        super().__setattr__(name, value)

    def train(self, mode: bool = True) -> nn.Module:
        """Only the prompts follow ``mode``: dropout and drop path in a frozen backbone are noise."""
        super().train(mode)
        if '_before' in vars(self):  # whoever takes prompts off calls upstream's, then
            self._before = self._before._replace(modes=None)
        if 'prompts' in self._modules:
            for name, child in self.named_children():
                if name != 'prompts':
                    child.eval()
        return self

    def init_weights(self, *args, **kwargs) -> None:
        """As upstream; says so if the frozen weights come from no checkpoint.

        Raises:
            ConfigError: If the file that init_cfg names holds more than weights, which upstream would execute.
        """
        source = named_checkpoint(self)
        if source:
            check_only_weights(source['checkpoint'])
        # timm's pre-trained weights are loaded by the constructor, which says so by this.
        self._frozen_loaded = getattr(self, '_is_init', False)
        try:
            super().init_weights(*args, **kwargs)
        except IndexError as error:  # mmdet, for a checkpoint none of whose keys starts with 'backbone.'
            raise RuntimeError(f'{self.init_cfg} holds no weights for {type(self).__name__}: no key starts with '
                               "'backbone.' (is it in the layout of another library? mmdet's Swin reads the layout "
                               "of Swin's authors with convert_weights=True)") from error
        if not self._frozen_loaded:
            log(f'{type(self).__name__} is frozen, and its init_cfg loads no checkpoint: unless load_from or '
                'resume does, prompts will be tuned on random weights.', logging.WARNING)

    def frozen_tensors(self) -> dict[str, Tensor]:
        """What nothing trains, by its name here: what a checkpoint of what was tuned leaves out."""
        # What quantization packs is no tensor.
        return {name: value for name, value in self.state_dict(keep_vars=True).items()
                if not name.startswith(PROMPTS) and not getattr(value, 'requires_grad', False)}


class PromptedTIMMModel(PromptedBackbone, TIMMEntrance):
    """The same, of a timm model itself."""


class PromptedModuleDict(PromptedBackbone):
    """The same, of what timm makes with ``features_only``: it calls its children one after the other."""

    def items(self):
        """The children, without the prompts, which are no layer."""
        return [(name, module) for name, module in super().items() if name != 'prompts']
