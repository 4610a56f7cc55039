"""ResNet for small images: basic blocks, no stem pooling (He et al., 1512.03385, section 4.2), 1×1 shortcuts."""

from torch import Tensor, nn
from torch.nn import functional


class Block(nn.Module):
    """Two 3×3 convolutions and a shortcut, which is a 1×1 convolution where the shape changes."""

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, stride, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(out_channels)
        same = in_channels == out_channels and stride == 1
        self.shortcut = (
            nn.Identity()
            if same
            else nn.Sequential(
                nn.Conv2d(in_channels, out_channels, 1, stride, bias=False), nn.BatchNorm2d(out_channels)
            )
        )

    def forward(self, x: Tensor) -> Tensor:
        y = functional.relu(self.norm1(self.conv1(x)))
        return functional.relu(self.norm2(self.conv2(y)) + self.shortcut(x))


class ResNet(nn.Module):
    """Stages of blocks; each stage after the first halves the image."""

    def __init__(self, widths: list[int], blocks: list[int], in_channels: int, classes: int) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(in_channels, widths[0], 3, padding=1, bias=False), nn.BatchNorm2d(widths[0]), nn.ReLU()
        )
        stages, channels = [], widths[0]
        for stage, (width, depth) in enumerate(zip(widths, blocks, strict=True)):
            strides = [2 if stage else 1] + [1] * (depth - 1)
            layers = [Block(channels if i == 0 else width, width, stride) for i, stride in enumerate(strides)]
            stages.append(nn.Sequential(*layers))
            channels = width
        self.stages = nn.Sequential(*stages)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.head = nn.Linear(channels, classes)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(self.pool(self.stages(self.stem(x))).flatten(1))
        return logits


def resnet(
    in_channels: int, classes: int, widths: list[int] | None = None, blocks: list[int] | None = None
) -> nn.Module:
    """Images [N, in_channels, H, W] to logits [N, classes]; `widths` and `blocks` have one entry a stage.

    The default is CIFAR's ResNet-20.
    """
    widths = widths or [16, 32, 64]
    blocks = blocks or [3] * len(widths)
    if len(widths) != len(blocks) or min(*widths, *blocks) < 1:
        raise ValueError(f"widths {widths} and blocks {blocks} should be as many, each 1 or more")
    return ResNet(widths, blocks, in_channels, classes)
