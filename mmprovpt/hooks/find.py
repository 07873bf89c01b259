"""What a Runner has of prompts."""
from typing import Union

from mmengine.model import is_model_wrapper
from mmengine.optim import OptimWrapper, OptimWrapperDict
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from mmprovpt.errors import ConfigError
from mmprovpt.prompts.prompt_set import PromptSet


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
                          '(docs/how-to/scaling.md says why)')


def find_pool(model: nn.Module) -> PromptSet:
    """The only pool of prompts in a model, which may be wrapped for distributed training.

    Raises:
        ValueError: There is none or more than one, or it is empty or cannot relocate, or its rows may be sharded.
    """
    require_replicas(model, 'PromptRelocationHook')
    pools = {name: m for name, m in unwrapped(model).named_modules() if isinstance(m, PromptSet)}
    if len(pools) != 1:
        raise ValueError(f'PromptRelocationHook needs a model with one PromptSet, but it has '
                         f'{len(pools)}{": " + ", ".join(pools) if pools else ""}; give the '
                         'backbone `prompts`, or remove the hook')
    pool = next(iter(pools.values()))
    if len(pool.tokens) == 0:
        raise ValueError('PromptRelocationHook has no prompt to relocate: num_tokens is 0')
    if pool.keeps_outputs:
        raise ValueError(f'PromptRelocationHook has nothing to relocate: {type(pool).__name__} all enter the first '
                         'block and stay (VPT-Shallow). Remove the hook, or take StaticPrompts or AdaptivePrompts')
    return pool


def find_optim_wrapper(optim_wrapper: Union[OptimWrapper, OptimWrapperDict],
                       tokens: nn.Parameter) -> OptimWrapper:
    """The wrapper whose optimizer trains the prompts.

    Raises:
        ValueError: There is none.
    """
    is_dict = isinstance(optim_wrapper, OptimWrapperDict)
    wrappers = [wrapper for _, wrapper in optim_wrapper.items()] if is_dict else [optim_wrapper]
    for wrapper in wrappers:
        groups = wrapper.optimizer.param_groups
        if tokens.requires_grad and any(p is tokens for g in groups for p in g['params']):
            return wrapper
    raise ValueError('PromptRelocationHook needs trained prompts, but no optimizer has the '
                     'parameter `tokens` of the PromptSet, or it needs no gradient')
