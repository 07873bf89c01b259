from .relocation_hook import PromptRelocationHook

__all__ = ['PromptRelocationHook']
