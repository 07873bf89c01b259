"""What a Runner has of prompts."""
from typing import Union

from mmengine.model import is_model_wrapper
from mmengine.optim import OptimWrapper, OptimWrapperDict
from torch import nn

from mmprovpt.prompts.pool import PromptPool


def find_pool(model: nn.Module) -> PromptPool:
    """The only pool of prompts in a model, which may be wrapped for distributed training.

    Raises:
        ValueError: There is none or more than one, or it is empty.
    """
    model = model.module if is_model_wrapper(model) else model
    pools = {name: m for name, m in model.named_modules() if isinstance(m, PromptPool)}
    if len(pools) != 1:
        raise ValueError(f'PromptRelocationHook needs a model with one PromptPool, but it has '
                         f'{len(pools)}{": " + ", ".join(pools) if pools else ""}; give the '
                         'backbone `prompts`, or remove the hook')
    pool = next(iter(pools.values()))
    if len(pool.tokens) == 0:
        raise ValueError('PromptRelocationHook has no prompt to relocate: num_tokens is 0')
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
                     'parameter `tokens` of the PromptPool, or it needs no gradient')
