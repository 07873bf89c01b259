from .adaptive import AdaptivePrompts
from .frozen import tuned_state_dict
from .inject import inject_prompts
from .pool import PromptPool
from .shallow import ShallowPrompts
from .static import StaticPrompts

__all__ = ['AdaptivePrompts', 'PromptPool', 'ShallowPrompts', 'StaticPrompts', 'inject_prompts', 'tuned_state_dict']
