"""Checkpoints and optimizers that do not fit prompts, before anything is trained or tested."""
from mmengine.hooks import Hook
from mmengine.runner import Runner
from torch import Tensor

from mmprovpt.backbones import PromptedBackbone
from mmprovpt.errors import CheckpointError, ConfigError
from mmprovpt.prompts import PromptSet, PromptSets
from mmprovpt.registry import HOOKS
from mmprovpt.relocation.session import trains

from .find import optim_wrappers, unwrapped


@HOOKS.register_module()
class PromptCheckHook(Hook):
    """Refuse to test or resume a checkpoint without prompts, to test one without a head, to train without prompts.

    Prompts that a checkpoint has, but that do not fit, raise wherever they are loaded; this hook is for what is not
    there. A checkpoint without prompts is an initialisation: training may start from it (``load_from``). The tools of
    this package have this hook by themselves.

    Raises:
        CheckpointError: Before testing or resuming: the checkpoint has no prompts, or (testing) other keys that the
            model has are missing or of another shape.
        ConfigError: Before training: no optimizer has the prompts, or they need no gradient.
    """

    priority = 'VERY_HIGH'  # before anyone takes what is in the checkpoint

    def before_train(self, runner: Runner) -> None:
        """Check that prompts are trained."""
        wrappers, model = optim_wrappers(runner.optim_wrapper), unwrapped(runner.model)
        # Of several sets, one is enough.
        may_rest = {each for module in model.modules() if isinstance(module, PromptSets)
                    and any(other.wants_grad for other in module.sets) for each in module.sets if not each.wants_grad}
        for name, module in model.named_modules():
            if not isinstance(module, PromptSet) or not len(module.tokens) or module in may_rest:
                continue
            if not module.tokens.requires_grad:
                raise ConfigError(f'{name}.tokens needs no gradient: something has frozen the prompts that were to be '
                                  'trained (LoRAModel does; so do hooks that freeze layers by name)')
            if not any(trains(each.optimizer, module.tokens) for each in wrappers):
                raise ConfigError(f'no optimizer has {name}.tokens: does optim_wrapper.constructor, or a group of '
                                  'optim_wrapper.paramwise_cfg, leave the prompts out?')

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Check what is to be tested or resumed; it is not loaded yet."""
        testing = runner._train_loop is None or isinstance(runner._train_loop, dict)
        if not testing and not runner._resume:
            return
        state = checkpoint.get('state_dict', checkpoint)
        state = {_plain(key): value for key, value in state.items()}
        model = unwrapped(runner.model)
        for name, module in model.named_modules():
            prefix = f'{_plain(name)}.prompts.'.lstrip('.')
            if not isinstance(module, PromptedBackbone) or not any(len(each.tokens) for each in module.prompts.sets):
                continue
            if not any(key.startswith(prefix) for key in state):
                what = 'tested: its prompts would be random' if testing else 'resumed: its prompts would start anew'
                raise CheckpointError(f'the checkpoint has no {prefix}*, so it cannot be {what}. It is of a model '
                                      'without prompts (full fine-tuning, the library); train from it with load_from')
        if testing:
            _require_whole({_plain(key): value for key, value in model.state_dict().items()}, state, frozen_keys(model))


def _plain(key: str) -> str:
    """Without what wrappers (DDP, test-time augmentation) put in front of it."""
    return key.removeprefix('module.')


def frozen_keys(model) -> set[str]:
    """Keys of frozen weights of prompted backbones, which a small checkpoint leaves out and loading checks."""
    backbones = {name: module for name, module in model.named_modules() if isinstance(module, PromptedBackbone)}
    return {_plain(f'{name}.{key}'.lstrip('.')) for name, module in backbones.items() for key in module.state_dict()}


def _require_whole(wanted: dict[str, Tensor], state: dict[str, Tensor], elsewhere: set[str]) -> None:
    """Raise where values of the model, but for those checked elsewhere, are not in a state dict or do not fit."""
    wanted = {key: value for key, value in wanted.items()
              if key not in elsewhere and isinstance(value, Tensor) and value.is_floating_point()}
    missing = [key for key in wanted if key not in state]
    unfit = [f'{key}: {tuple(state[key].shape)}, expected {tuple(value.shape)}' for key, value in wanted.items()
             if key in state and state[key].shape != value.shape]
    if missing or unfit:
        lines = [f'{title}: {", ".join(keys[:8])}{f" and {len(keys) - 8} more" if len(keys) > 8 else ""}'
                 for title, keys in (('missing', missing), ('of another shape', unfit)) if keys]
        raise CheckpointError('the checkpoint is not of this model, which would be tested with random weights; '
                              f'{"; ".join(lines)}. Test with the config that it was trained with')
