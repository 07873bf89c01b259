"""What a prompt is: rows and their owners, in three forms."""
from .adaptive import AdaptivePrompts
from .arithmetic import average_prompts, compare_prompts, interpolate_prompts
from .prompt_set import FORMS, PromptSet, find_prompts
from .several import PromptSets
from .shallow import ShallowPrompts
from .static import StaticPrompts

__all__ = ['FORMS', 'AdaptivePrompts', 'PromptSet', 'PromptSets', 'ShallowPrompts', 'StaticPrompts', 'average_prompts',
           'compare_prompts', 'find_prompts', 'interpolate_prompts']
