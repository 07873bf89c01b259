"""Hooks for MMEngine's runner."""
import mmprovpt.registry  # noqa: F401  first: without MMEngine it says what to install

from .checkpoint_hook import PromptCheckpointHook
from .class_check import ClassCheckHook
from .iteration_seed_hook import IterationSeedHook
from .relocation_hook import PromptRelocationHook

__all__ = ['ClassCheckHook', 'IterationSeedHook', 'PromptCheckpointHook', 'PromptRelocationHook']
