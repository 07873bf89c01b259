"""Relocation of prompts between blocks, for any training loop; needs PyTorch only."""
from .allocator import ALLOCATORS, Allocator
from .arrival import ARRIVALS
from .bandits import NeedAllocator, ThompsonAllocator, UniformAllocator
from .criteria import CRITERIA, FisherGateIdleness, TaylorIdleness, true_idleness
from .history import Period, RelocationLog
from .ppo import PPOAllocator
from .pruners import PRUNERS, IdlenessPruner, RandomPruner
from .relocator import Move, Relocator
from .reward import PeriodLoss, RewardBaseline
from .session import RelocationSession

__all__ = [
    'ALLOCATORS', 'ARRIVALS', 'CRITERIA', 'PRUNERS', 'Allocator', 'FisherGateIdleness', 'IdlenessPruner', 'Move',
    'NeedAllocator', 'PPOAllocator', 'Period', 'PeriodLoss', 'RandomPruner', 'RelocationLog', 'RelocationSession',
    'Relocator', 'RewardBaseline', 'TaylorIdleness', 'ThompsonAllocator', 'UniformAllocator',
    'true_idleness'
]
