"""What a prompt is: rows and their owners, in three forms."""
from .adaptive import AdaptivePrompts
from .prompt_set import FORMS, PromptSet, find_prompts
from .shallow import ShallowPrompts
from .static import StaticPrompts

__all__ = ['FORMS', 'AdaptivePrompts', 'PromptSet', 'ShallowPrompts', 'StaticPrompts', 'find_prompts']
