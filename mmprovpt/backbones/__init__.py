"""Prompted backbones. Those for configs need MMEngine: ``registered``, ``timm_pooling``, ``simple_pyramid``."""
from .checkpoints import prompted_backbones, share_frozen, tuned_state_dict
from .folding import folded
from .inject import inject_prompts
from .prompted import PromptedBackbone
from .several import add_prompts, fill_prompts, load_prompts, remove_prompts, set_prompts, using_prompts

__all__ = ['PromptedBackbone', 'add_prompts', 'fill_prompts', 'folded', 'inject_prompts', 'load_prompts',
           'prompted_backbones', 'remove_prompts', 'set_prompts', 'share_frozen', 'tuned_state_dict', 'using_prompts']
