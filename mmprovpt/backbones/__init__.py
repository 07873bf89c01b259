"""Prompted backbones. Those for configs need MMEngine and are in ``registered`` and ``timm_pooling``."""
from .checkpoints import prompted_backbones, share_frozen, tuned_state_dict
from .inject import inject_prompts
from .prompted import PromptedBackbone

__all__ = ['PromptedBackbone', 'inject_prompts', 'prompted_backbones', 'share_frozen', 'tuned_state_dict']
