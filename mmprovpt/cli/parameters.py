"""How many numbers a run trains."""
import copy

from mmengine.config import Config
from mmengine.model import is_model_wrapper
from mmengine.registry import MODELS, DefaultScope
from torch import nn
from torch.overrides import TorchFunctionMode

from mmprovpt.prompts import PromptSet, find_prompts
from mmprovpt.relocation import ALLOCATORS
from mmprovpt.relocation.allocator import Allocator

from .config_parts import find_backbones, find_hooks, scope_of, type_name


def count_trainable(model: nn.Module, allocator: Allocator | None = None) -> int:
    """Parameters that need gradients, of prompts those that a block owns, and the policy's networks.

    PRO-VPT's Tab. 1 to 3 count so.

    Args:
        model: Any model, with or without prompts; may be wrapped for distributed training.
        allocator: Whose networks are trained beside it, e.g. ``session.relocator.allocator``: 13,901 numbers for PPO at
            12 blocks, none for bandits.
    """
    model = model.module if is_model_wrapper(model) else model
    count = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    # Of any number of backbones, also of none.
    for prompts in (module for module in model.modules() if isinstance(module, PromptSet) and module.wants_grad):
        count += prompts.num_active - sum(each.numel() for each in prompts.parameters() if each.requires_grad)
    networks = [value for value in vars(allocator).values() if isinstance(value, nn.Module)] if allocator else []
    return count + sum(parameter.numel() for network in networks for parameter in network.parameters())


def count_config(cfg: Config, model: nn.Module | None = None) -> int:
    """``count_trainable`` of what a config builds, policy included, without initialising or loading the weights.

    Args:
        cfg: The config.
        model: What it builds, or a part of that, where it is there already.
    """
    model, hooks = build_uninitialised(cfg) if model is None else model, find_hooks(cfg)
    if not hooks:
        return count_trainable(model)
    allocator = hooks[0].get('allocator', dict(type='PPOAllocator'))
    return count_trainable(model, ALLOCATORS.build(allocator, num_blocks=find_prompts(model).num_blocks, seed=0))


def build_uninitialised(cfg: Config, part: str = '') -> nn.Module:
    """The model of a config with whatever numbers are in memory: for its parameters and shapes only.

    Args:
        cfg: The config.
        part: The key of a part of the model, such as ``'backbone'``, which is then all that the model has.
    """
    model = copy.deepcopy(cfg.model)
    for backbone in find_backbones(model).values():
        if type_name(backbone) == 'LoRAModel':  # it loads when it constructs
            backbone = backbone['module']
            backbone.pop('init_cfg', None)
        if 'model_name' in backbone:  # and so does timm; MMSegmentation's wrapper unless it is told not to
            backbone.update(pretrained=False, checkpoint_path='')
    with DefaultScope.overwrite_default_scope(scope_of(cfg)), _Uninitialised():
        if not part:
            return MODELS.build(model)
        whole = nn.Module()
        whole.add_module(part, MODELS.build(model[part]))
        return whole


class _Uninitialised(TorchFunctionMode):
    """Leave out all of torch.nn.init, which takes most of the time and of the memory that building a model takes.

    And the draws of which timm and others make an init of their own.
    """

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        draws = getattr(func, '__name__', None) in ('normal_', 'uniform_', 'erfinv_')
        if getattr(func, '__module__', None) == 'torch.nn.init' or draws:
            return kwargs['tensor'] if 'tensor' in kwargs else args[0]
        return func(*args, **kwargs)
