"""Hooks for MMEngine's runner."""
import mmprovpt.registry  # noqa: F401  first: without MMEngine it says what to install

from .checkpoint_hook import PromptCheckpointHook
from .class_check import ClassCheckHook
from .finite import FiniteAmpOptimWrapper, FiniteOptimWrapper
from .iteration_seed_hook import IterationSeedHook
from .prompt_check import PromptCheckHook
from .relocation_hook import PromptRelocationHook

__all__ = [
    'ClassCheckHook', 'FiniteAmpOptimWrapper', 'FiniteOptimWrapper', 'IterationSeedHook', 'PromptCheckHook',
    'PromptCheckpointHook', 'PromptRelocationHook'
]
