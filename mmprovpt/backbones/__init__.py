from .prompted import PromptedSwinTransformer, PromptedTIMMBackbone, PromptedVisionTransformer
from .timm_pooling import TIMMPooling

__all__ = ['PromptedSwinTransformer', 'PromptedTIMMBackbone', 'PromptedVisionTransformer', 'TIMMPooling']
