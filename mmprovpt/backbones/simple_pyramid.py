"""A pyramid of maps for detectors on a plain ViT, all of them made of its last one."""
import torch.nn.functional as F
from torch import Tensor, nn

from mmprovpt.errors import ConfigError
from mmprovpt.registry import MODELS


@MODELS.register_module()
class SimpleFeaturePyramid(nn.Module):
    """Neck, the simple feature pyramid of ViTDet (Li et al., Exploring Plain Vision Transformer Backbones, Sec. 3).

    The last map is deconvolved or pooled to each scale; then come a convolution of 1 and one of 3 pixels, each with a
    norm of the channels.

    Args:
        in_channels: Of the last map.
        out_channels: Of each level.
        scales: Of the levels, as multiples of the map's size: 4, 2, 1 or 0.5; the largest comes first.
        num_outs: Number of levels; beyond those of ``scales``, each is every second pixel of the one before.
    """

    def __init__(self, in_channels: int, out_channels: int = 256, scales: tuple[float, ...] = (4, 2, 1, 0.5),
                 num_outs: int = 5) -> None:
        super().__init__()
        unknown = [scale for scale in scales if scale not in (4, 2, 1, 0.5)]
        if unknown or num_outs < len(scales):
            raise ConfigError(f'scales={scales}, num_outs={num_outs}, but scales are of 4, 2, 1 and 0.5, and there are '
                              'at least as many levels')
        self.num_outs = num_outs
        self.levels = nn.ModuleList(_level(in_channels, out_channels, scale) for scale in scales)

    def forward(self, features: tuple[Tensor, ...] | list[Tensor]) -> tuple[Tensor, ...]:
        """Make the levels.

        Args:
            features: Maps (B, C, h, w) of a backbone, of which the last is read.

        Returns:
            ``num_outs`` maps (B, out_channels, scale · h, scale · w).
        """
        outs = [level(features[-1]) for level in self.levels]
        while len(outs) < self.num_outs:
            outs.append(F.max_pool2d(outs[-1], 1, stride=2))
        return tuple(outs)


class ChannelNorm(nn.LayerNorm):
    """LayerNorm of the channels of (B, C, h, w)."""

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, h, w) to the same."""
        return super().forward(x.movedim(1, -1)).movedim(-1, 1)


def _level(channels: int, out_channels: int, scale: float) -> nn.Sequential:
    layers: list[nn.Module] = []
    if scale == 4:
        layers += [_double(channels), ChannelNorm(channels // 2), nn.GELU(), _double(channels // 2)]
    elif scale == 2:
        layers += [_double(channels)]
    elif scale == 0.5:
        layers += [nn.MaxPool2d(2)]
    channels = int(channels // max(scale, 1))
    return nn.Sequential(*layers, nn.Conv2d(channels, out_channels, 1, bias=False), ChannelNorm(out_channels),
                         nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False), ChannelNorm(out_channels))


def _double(channels: int) -> nn.ConvTranspose2d:
    """To twice the size and half of the channels."""
    return nn.ConvTranspose2d(channels, channels // 2, 2, stride=2)
