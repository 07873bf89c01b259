from .checkpoint_hook import PromptCheckpointHook
from .relocation_hook import PromptRelocationHook

__all__ = ['PromptCheckpointHook', 'PromptRelocationHook']
