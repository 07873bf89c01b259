from .adopt import adopt
from .fused_qkv import PromptedMultiheadAttention, PromptedTIMMAttention
from .mmcv_mha import PromptedMMCVAttention
from .reader import PromptReader
from .window import PromptedWindowAttention

__all__ = [
    'PromptReader', 'PromptedMMCVAttention', 'PromptedMultiheadAttention', 'PromptedTIMMAttention',
    'PromptedWindowAttention', 'adopt'
]
