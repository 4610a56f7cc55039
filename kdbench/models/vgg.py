"""VGG with batch norm (Simonyan & Zisserman, 1409.1556), for small images as in the distillation literature.

Five stages and one linear layer; the image is halved before the stages 1 to 3, so that 4×4 of 32×32 pixels are left.
Features: `stages.0` … `stages.4` after the last ReLU, `pool`.
"""

from typing import Literal

from torch import nn

from kdbench.models.layers import ConvNorm, ImageClassifier
from kdbench.records import Count

LAYERS = {
    8: (1, 1, 1, 1, 1),
    11: (1, 1, 2, 2, 2),
    13: (2, 2, 2, 2, 2),
    16: (2, 2, 3, 3, 3),
    19: (2, 2, 4, 4, 4),
}
"""Convolutions of each stage by depth. The names count three linear layers, as the paper has them for large images."""


def vgg(in_channels: int, classes: int, depth: Literal[8, 11, 13, 16, 19] = 13, width: Count = 64) -> nn.Module:
    """Images [N, in_channels, H, W] to logits [N, classes]; the stages have 1, 2, 4, 8 and 8 times `width` channels."""
    stages: list[nn.Module] = []
    channels = in_channels
    for stage, convolutions in enumerate(LAYERS[depth]):
        wide = width * min(2**stage, 8)
        layers: list[nn.Module] = [nn.MaxPool2d(2)] if 1 <= stage <= 3 else []
        layers += [ConvNorm(wide if i else channels, wide, 3, bias=True) for i in range(convolutions)]
        stages.append(nn.Sequential(*layers))
        channels = wide
    return ImageClassifier(nn.Identity(), stages, channels, classes)
