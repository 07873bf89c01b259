from mmprovpt.kinds import Kinds

from .adaptive import AdaptivePrompts
from .frozen import tuned_state_dict
from .inject import inject_prompts
from .prompt_set import PromptSet
from .shallow import ShallowPrompts
from .static import StaticPrompts

FORMS = Kinds('prompts')

__all__ = [
    'FORMS', 'AdaptivePrompts', 'PromptSet', 'ShallowPrompts', 'StaticPrompts', 'inject_prompts', 'tuned_state_dict'
]
