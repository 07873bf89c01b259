"""The pooling that mmpretrain's TIMMBackbone takes away from a timm model together with its classifier."""
import torch
from torch import nn

from mmprovpt.registry import MODELS


@MODELS.register_module()
class TIMMPooling(nn.Module):
    """Neck for classifiers on ``TIMMBackbone``: from the features of timm's ViT or Swin to vectors.

    Args:
        pool: ``'token'``, the class token of (B, 1 + N, C); ``'avg'``, the mean over the map of (B, H, W, C).
    """

    def __init__(self, pool: str):
        super().__init__()
        if pool not in ('token', 'avg'):
            raise ValueError(f"pool={pool!r}, but it must be 'token' or 'avg'")
        self.pool = pool

    def forward(self, features: tuple) -> tuple:
        """Pool every feature.

        Args:
            features: Tensors (B, 1 + N, C) or (B, H, W, C).

        Returns:
            Tensors (B, C).

        Raises:
            ValueError: If the features are of the other shape.
        """
        dims = 3 if self.pool == 'token' else 4
        wrong = [tuple(x.shape) for x in features if x.dim() != dims]
        if wrong:
            expected = '(B, 1 + N, C)' if self.pool == 'token' else '(B, H, W, C)'
            raise ValueError(f'pool={self.pool!r} needs features {expected}, but got {wrong[0]}')
        return tuple(x[:, 0] if dims == 3 else torch.mean(x, (1, 2)) for x in features)
