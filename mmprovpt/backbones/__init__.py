from .prompted import PromptedSwinTransformer, PromptedTIMMBackbone, PromptedVisionTransformer

__all__ = ['PromptedSwinTransformer', 'PromptedTIMMBackbone', 'PromptedVisionTransformer']
