"""What a prompt is: rows and their owners, in three forms."""
from .adaptive import AdaptivePrompts
from .prompt_set import FORMS, PromptSet, find_prompts
from .several import PromptSets
from .shallow import ShallowPrompts
from .static import StaticPrompts

__all__ = ['FORMS', 'AdaptivePrompts', 'PromptSet', 'PromptSets', 'ShallowPrompts', 'StaticPrompts', 'find_prompts']
