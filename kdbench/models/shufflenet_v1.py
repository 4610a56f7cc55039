"""ShuffleNet (Zhang et al., 1707.01083), for small images as in the distillation literature: a 1×1 stem, no pooling.

Features: `stem`, `stages.0` … `stages.2` [N, width·2^i, H / 2^(i+1), W / 2^(i+1)] after the last ReLU, `pool`.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional

from kdbench.models.layers import ChannelShuffle, ConvNorm, ImageClassifier

STEM = 24
BLOCKS = (4, 8, 4)


class Block(nn.Module):
    """Grouped 1×1, shuffle, 3×3 on each channel, grouped 1×1; a halving block appends the pooled input's channels."""

    def __init__(self, in_channels: int, out_channels: int, stride: int, groups: int, first_groups: int) -> None:
        super().__init__()
        new = out_channels - in_channels if stride == 2 else out_channels
        narrow = new // 4
        self.layers = nn.Sequential(
            ConvNorm(in_channels, narrow, 1, groups=first_groups),
            ChannelShuffle(first_groups),
            ConvNorm(narrow, narrow, 3, stride, groups=narrow, activation=None),
            ConvNorm(narrow, new, 1, groups=groups, activation=None),
        )
        self.shortcut = nn.AvgPool2d(3, stride=2, padding=1) if stride == 2 else None

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.layers(x)
        return functional.relu(torch.cat([y, self.shortcut(x)], dim=1) if self.shortcut else y + x)


def shufflenet_v1(in_channels: int, classes: int, width: int = 240, groups: int = 3) -> nn.Module:
    """Images [N, in_channels, H, W] to logits [N, classes]; the stages have 1, 2 and 4 times `width` channels.

    The paper's widths for 1, 2, 3, 4 and 8 groups are 144, 200, 240, 272 and 384.
    """
    if groups < 1 or width <= STEM or width % (4 * groups) or (width - STEM) % (4 * groups):
        raise ValueError(f"width {width} and {STEM} less should be multiples of 4·groups, {4 * groups}")
    stages: list[nn.Module] = []
    channels = STEM
    for stage, blocks in enumerate(BLOCKS):
        wide = width * 2**stage
        # The stem's few channels are not grouped (the paper's section 3.2).
        first = Block(channels, wide, 2, groups, groups if stage else 1)
        stages.append(nn.Sequential(first, *(Block(wide, wide, 1, groups, groups) for _ in range(blocks - 1))))
        channels = wide
    return ImageClassifier(ConvNorm(in_channels, STEM, 1), stages, channels, classes)
