from .checkpoint_hook import PromptCheckpointHook
from .class_check import ClassCheckHook
from .relocation_hook import PromptRelocationHook

__all__ = ['ClassCheckHook', 'PromptCheckpointHook', 'PromptRelocationHook']
