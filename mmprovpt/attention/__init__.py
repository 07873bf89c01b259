"""How a block reads its rows."""
from .base import PromptedAttention
from .block import Given, PromptedBlock
from .support import SUPPORTED, find_blocks, support

__all__ = ['SUPPORTED', 'Given', 'PromptedAttention', 'PromptedBlock', 'find_blocks', 'support']
