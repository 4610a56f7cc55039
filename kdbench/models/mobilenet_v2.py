"""MobileNetV2 (Sandler et al., 1801.04381), for small images as in the distillation literature.

The stem halves the image, and of the paper's later strides the first is left out: 2×2 of 32×32 pixels are left.
Features: `stem`, `stages.0` … `stages.3`, each of one resolution, before the 1×1 convolution `stages.4`; `pool`.
"""

from torch import Tensor, nn

from kdbench.models.layers import ConvNorm, ImageClassifier

STAGES = (
    ((1, 16, 1), (6, 24, 2)),
    ((6, 32, 3),),
    ((6, 64, 4), (6, 96, 3)),
    ((6, 160, 3), (6, 320, 1)),
)
"""The rows of the paper's table 2 by stage: expansion, channels, blocks."""

LAST = 1280


class Block(nn.Module):
    """Inverted residual: 1×1 to more channels, 3×3 on each of them, 1×1 back without activation."""

    def __init__(self, in_channels: int, out_channels: int, stride: int, expansion: int) -> None:
        super().__init__()
        wide = in_channels * expansion
        self.residual = in_channels == out_channels and stride == 1
        self.layers = nn.Sequential(
            nn.Identity() if expansion == 1 else ConvNorm(in_channels, wide, 1, activation=nn.ReLU6),
            ConvNorm(wide, wide, 3, stride, groups=wide, activation=nn.ReLU6),
            ConvNorm(wide, out_channels, 1, activation=None),
        )

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.layers(x)
        return x + y if self.residual else y


def mobilenet_v2(in_channels: int, classes: int, width: float = 1.0) -> nn.Module:
    """Images [N, in_channels, H, W] to logits [N, classes]; all channels times `width`, the last at least 1280."""
    if width * 16 < 1:
        raise ValueError(f"width {width} leaves no channels: give 0.0625 or more")
    channels = int(32 * width)
    stem = ConvNorm(in_channels, channels, 3, stride=2, activation=nn.ReLU6)
    stages: list[nn.Module] = []
    for stage, rows in enumerate(STAGES):
        layers: list[nn.Module] = []
        for expansion, wide, blocks in rows:
            for _ in range(blocks):
                layers.append(Block(channels, int(wide * width), 2 if stage and not layers else 1, expansion))
                channels = int(wide * width)
        stages.append(nn.Sequential(*layers))
    last = int(LAST * max(width, 1.0))
    return ImageClassifier(stem, [*stages, ConvNorm(channels, last, 1, activation=nn.ReLU6)], last, classes)
