from torch import nn
from torch.nn.parallel import DistributedDataParallel

from .adaptive import AdaptivePrompts
from .frozen import tuned_state_dict
from .inject import inject_prompts
from .prompt_set import PromptSet
from .shallow import ShallowPrompts
from .static import StaticPrompts

__all__ = [
    'AdaptivePrompts', 'PromptSet', 'ShallowPrompts', 'StaticPrompts', 'find_prompts', 'inject_prompts',
    'tuned_state_dict'
]


def find_prompts(model: nn.Module) -> PromptSet:
    """The only prompts in a model, which may be wrapped by DistributedDataParallel.

    Raises:
        ValueError: There are none, or those of several backbones.
    """
    model = model.module if isinstance(model, DistributedDataParallel) else model
    found = {name: module for name, module in model.named_modules() if isinstance(module, PromptSet)}
    if len(found) != 1:
        raise ValueError(f'{type(model).__name__} must have one PromptSet, but it has {len(found)}'
                         f'{": " if found else ""}{", ".join(found)}')
    return next(iter(found.values()))
