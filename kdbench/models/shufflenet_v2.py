"""ShuffleNetV2 (Ma et al., 1807.11164), for small images as in the distillation literature: a 1×1 stem, no pooling.

Features: `stem`, `stages.0` … `stages.2` [N, widths[i], H / 2^(i+1), W / 2^(i+1)] before the 1×1 convolution
`stages.3`; `pool`.
"""

import torch
from torch import Tensor, nn

from kdbench.models.layers import ChannelShuffle, ConvNorm, ImageClassifier

STEM = 24
BLOCKS = (4, 8, 4)


def _branch(in_channels: int, out_channels: int, stride: int) -> nn.Sequential:
    """1×1, 3×3 on each channel, 1×1."""
    return nn.Sequential(
        ConvNorm(in_channels, out_channels, 1),
        ConvNorm(out_channels, out_channels, 3, stride, groups=out_channels, activation=None),
        ConvNorm(out_channels, out_channels, 1),
    )


class Block(nn.Module):
    """Half of the channels pass by, the other half is convolved; then both are shuffled."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.branch = _branch(channels // 2, channels // 2, 1)
        self.shuffle = ChannelShuffle(2)

    def forward(self, x: Tensor) -> Tensor:
        kept, changed = x.chunk(2, dim=1)
        shuffled: Tensor = self.shuffle(torch.cat([kept, self.branch(changed)], dim=1))
        return shuffled


class Halving(nn.Module):
    """Both branches see all channels and halve the image."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        half = out_channels // 2
        self.shortcut = nn.Sequential(
            ConvNorm(in_channels, in_channels, 3, 2, groups=in_channels, activation=None),
            ConvNorm(in_channels, half, 1),
        )
        self.branch = _branch(in_channels, half, 2)
        self.shuffle = ChannelShuffle(2)

    def forward(self, x: Tensor) -> Tensor:
        shuffled: Tensor = self.shuffle(torch.cat([self.shortcut(x), self.branch(x)], dim=1))
        return shuffled


def shufflenet_v2(in_channels: int, classes: int, widths: list[int] | None = None, last: int = 1024) -> nn.Module:
    """Images [N, in_channels, H, W] to logits [N, classes]; `widths` has the channels of each of the three stages.

    The default is 1×; 0.5× has [48, 96, 192], 1.5× [176, 352, 704], 2× [244, 488, 976] and 2048 at last.
    """
    widths = widths or [116, 232, 464]
    if len(widths) != len(BLOCKS) or min(widths) < 2 or any(width % 2 for width in widths) or last < 1:
        raise ValueError(f"widths {widths} should be {len(BLOCKS)} even numbers, 2 or more; last {last} 1 or more")
    stages: list[nn.Module] = []
    channels = STEM
    for width, blocks in zip(widths, BLOCKS, strict=True):
        stages.append(nn.Sequential(Halving(channels, width), *(Block(width) for _ in range(blocks - 1))))
        channels = width
    return ImageClassifier(ConvNorm(in_channels, STEM, 1), [*stages, ConvNorm(channels, last, 1)], last, classes)
