"""Relocation of prompts between blocks, for any training loop; needs PyTorch only."""
import inspect
from typing import Dict

from .allocator import Allocator
from .bandits import NeedAllocator, RetireAllocator, ThompsonAllocator, UniformAllocator
from .criteria import CRITERIA, FisherGateIdleness, TaylorIdleness, true_idleness
from .history import RelocationHistory
from .ppo import JointPPOAllocator, PPOAllocator
from .pruners import IdlenessPruner, RandomPruner, ShrinkingPruner, SparePruner
from .relocator import Move, Relocator
from .reward import PeriodLoss, RewardBaseline

PRUNERS: Dict[str, type] = dict(
    IdlenessPruner=IdlenessPruner, RandomPruner=RandomPruner, ShrinkingPruner=ShrinkingPruner, SparePruner=SparePruner)
ALLOCATORS: Dict[str, type] = dict(
    PPOAllocator=PPOAllocator,
    JointPPOAllocator=JointPPOAllocator,
    ThompsonAllocator=ThompsonAllocator,
    UniformAllocator=UniformAllocator,
    RetireAllocator=RetireAllocator,
    NeedAllocator=NeedAllocator)


def check_config(config: dict, classes: Dict[str, type]) -> None:
    """Check a ``dict(type=..., ...)`` without building it.

    Args:
        config (dict): The name of a class and arguments for it.
        classes (dict): Names and classes to choose from.

    Raises:
        ValueError: Type or an argument is missing or unknown; the known ones are named.
    """
    name = config.get('type')
    if name not in classes:
        raise ValueError(f'unknown type {name!r} in {config}; known are {", ".join(classes)}')
    known = list(inspect.signature(classes[name]).parameters)
    for argument in config:
        if argument != 'type' and argument not in known:
            raise ValueError(f'{name} has no argument {argument!r}; known are {", ".join(known)}')


def build(config: dict, classes: Dict[str, type], **runtime):
    """Build the class that ``config['type']`` names.

    Args:
        config (dict): The name of a class and arguments for it.
        classes (dict): Names and classes to choose from.
        runtime: Arguments known only now; those in ``config`` take precedence, and those the class
            does not have are left out.

    Raises:
        ValueError: As ``check_config``.
    """
    check_config(config, classes)
    kwargs = {key: value for key, value in config.items() if key != 'type'}
    known = inspect.signature(classes[config['type']]).parameters
    runtime = {key: value for key, value in runtime.items() if key in known}
    return classes[config['type']](**{**runtime, **kwargs})


__all__ = [
    'ALLOCATORS', 'CRITERIA', 'PRUNERS', 'Allocator', 'FisherGateIdleness', 'IdlenessPruner', 'JointPPOAllocator',
    'Move', 'NeedAllocator', 'PPOAllocator', 'PeriodLoss', 'RandomPruner', 'RelocationHistory', 'Relocator',
    'RetireAllocator', 'RewardBaseline', 'ShrinkingPruner', 'SparePruner', 'TaylorIdleness', 'ThompsonAllocator',
    'UniformAllocator', 'build', 'check_config', 'true_idleness'
]
