"""What a Runner has of prompts."""

import torch
from mmengine import dist
from mmengine.model import is_model_wrapper
from mmengine.optim import OptimWrapper, OptimWrapperDict
from mmengine.runner import EpochBasedTrainLoop, Runner
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from mmprovpt.errors import ConfigError
from mmprovpt.prompts import PromptSet, PromptSets, find_prompts
from mmprovpt.relocation.session import trains
from mmprovpt.shipped import shipped


def unwrapped(model: nn.Module) -> nn.Module:
    """The model itself, which may be wrapped for distributed training."""
    return model.module if is_model_wrapper(model) else model


def require_replicas(model: nn.Module, who: str) -> None:
    """Check that each process has all of every parameter.

    FSDP, DeepSpeed and ColossalAI give it a flat piece of some: rows cannot be read or moved, and a fingerprint of
    pieces means nothing. There is little to gain by them: what is frozen has neither gradients nor optimizer state.

    Raises:
        ConfigError: The model is wrapped by anything but DistributedDataParallel.
    """
    if is_model_wrapper(model) and not isinstance(model, DistributedDataParallel):
        raise ConfigError(f'{who} needs whole parameters in each process, but {type(model).__name__} may shard them: '
                          "use MMEngine's Runner, or FlexibleRunner with strategy=dict(type='DDPStrategy') "
                          f'({shipped("docs/how-to/scaling.md")} says why)')


def find_relocating_prompts(model: nn.Module) -> PromptSet:
    """The prompts of a model that relocate: its only ones, or of several sets the only one that is trained.

    Args:
        model: May be wrapped for distributed training.

    Raises:
        ConfigError: There are none, or more such sets, or they cannot relocate, or their rows may be sharded.
    """
    require_replicas(model, 'PromptRelocationHook')
    sets = next((module for module in model.modules() if isinstance(module, PromptSets)), None)
    if sets is None:
        prompts = find_prompts(unwrapped(model))
    else:
        trained = [name for name, each in sets.items() if each.wants_grad]
        if len(trained) != 1:
            raise ConfigError('PromptRelocationHook moves the prompts of one set, but those that are trained are '
                              f"{', '.join(trained) or 'none'}: train one task after another (model.train=['name'])")
        prompts = sets[trained[0]]
    if len(prompts.tokens) == 0:
        raise ConfigError('PromptRelocationHook has no prompt to relocate: num_tokens is 0')
    if prompts.keeps_outputs:
        raise ConfigError(f'PromptRelocationHook has nothing to relocate: {type(prompts).__name__} all enter the first '
                          'block and stay (VPT-Shallow). Remove the hook, or take StaticPrompts or AdaptivePrompts')
    return prompts


def optim_wrappers(optim_wrapper: OptimWrapper | OptimWrapperDict) -> list[OptimWrapper]:
    """All of a Runner: one, or those of a dict."""
    return list(optim_wrapper.values()) if isinstance(optim_wrapper, OptimWrapperDict) else [optim_wrapper]


def find_optim_wrapper(optim_wrapper: OptimWrapper | OptimWrapperDict, tokens: nn.Parameter) -> OptimWrapper:
    """The wrapper whose optimizer trains the prompts; if none does, the first."""
    wrappers = optim_wrappers(optim_wrapper)
    return next((wrapper for wrapper in wrappers if trains(wrapper.optimizer, tokens)), wrappers[0])


def loss_of(model: nn.Module, batch) -> Tensor:
    """The total loss of a BaseModel on a batch as its loader collates it, which its preprocessor may write into."""
    loss, _ = model.parse_losses(model._run_forward(model.data_preprocessor(batch, True), mode='loss'))
    return loss


def loss_factor(optim_wrapper: OptimWrapper, device: torch.device) -> Tensor:
    """What the coming loss is multiplied by before backward, one element; never waits for the device."""
    factor = optim_wrapper.scale_loss(torch.ones(()))
    scaler = getattr(optim_wrapper, 'loss_scaler', None)
    return factor if scaler is None else scaler.scale(torch.ones(1, device=device)) * factor


def check_schedule(runner: Runner, interval: int, by_epoch: bool) -> None:
    """Check that all processes are done with an epoch at once (else they would wait for each other for ever).

    And warn where training is over before the second period begins, which is when a prompt moves.

    Args:
        runner: Which is about to train.
        interval, by_epoch: Length of a period, in epochs or iterations.

    Raises:
        ConfigError: Epochs of the processes differ in length.
    """
    if isinstance(runner.train_loop, EpochBasedTrainLoop):
        lengths = [int(length) for length in dist.all_gather(torch.tensor([len(runner.train_dataloader)]))]
        if len(set(lengths)) > 1:
            raise ConfigError(f'The processes have epochs of {lengths} batches, but must have equal ones: set '
                              'round_up=True in the sampler of train_dataloader')
    length = runner.max_epochs if by_epoch else runner.max_iters
    if interval >= length:
        runner.logger.warning(f'PromptRelocationHook has interval={interval}, and training has {length} '
                              f'{"epochs" if by_epoch else "iterations"}: no prompt will ever move; give a shorter '
                              'interval, or leave out the hook')
