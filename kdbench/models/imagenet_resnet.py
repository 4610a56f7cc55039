"""ResNet for large images (He et al., 1512.03385, table 1), the stride of a bottleneck in its 3×3 convolution.

Submodules are named as in torchvision, so that weights for it load: `conv1`, `bn1`, `layer1` … `layer4`, `fc`.
Features: `layer1` … `layer4` [N, C, H / 2^(i+1), W / 2^(i+1)] after the last ReLU, `avgpool`.
"""

from typing import Literal

from torch import Tensor, nn
from torch.nn import functional

from kdbench.records import Count

Depth = Literal[18, 34, 50, 101]

BLOCKS = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 6, 3), 101: (3, 4, 23, 3)}
BOTTLENECK_FROM = 50
EXPANSION = 4


def _shortcut(in_channels: int, out_channels: int, stride: int) -> nn.Module | None:
    if in_channels == out_channels and stride == 1:
        return None
    return nn.Sequential(nn.Conv2d(in_channels, out_channels, 1, stride, bias=False), nn.BatchNorm2d(out_channels))


class BasicBlock(nn.Module):
    """Two 3×3 convolutions."""

    def __init__(self, in_channels: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, width, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.downsample = _shortcut(in_channels, width, stride)

    def forward(self, x: Tensor) -> Tensor:
        y = functional.relu(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        return functional.relu(y + (x if self.downsample is None else self.downsample(x)))


class Bottleneck(nn.Module):
    """1×1 to `width` channels, 3×3, 1×1 to four times as many."""

    def __init__(self, in_channels: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, width * EXPANSION, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(width * EXPANSION)
        self.downsample = _shortcut(in_channels, width * EXPANSION, stride)

    def forward(self, x: Tensor) -> Tensor:
        y = functional.relu(self.bn1(self.conv1(x)))
        y = functional.relu(self.bn2(self.conv2(y)))
        y = self.bn3(self.conv3(y))
        return functional.relu(y + (x if self.downsample is None else self.downsample(x)))


class ImageNetResNet(nn.Module):
    """7×7 stem with pooling, four layers of blocks, mean, linear classifier."""

    def __init__(self, depth: Depth, width: int, in_channels: int, classes: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, width, 7, 2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.maxpool = nn.MaxPool2d(3, 2, padding=1)
        block, expansion = (Bottleneck, EXPANSION) if depth >= BOTTLENECK_FROM else (BasicBlock, 1)
        layers, channels = [], width
        for stage, blocks in enumerate(BLOCKS[depth]):
            narrow = width * 2**stage
            first = block(channels, narrow, 2 if stage else 1)
            channels = narrow * expansion
            layers.append(nn.Sequential(first, *(block(channels, narrow, 1) for _ in range(blocks - 1))))
        self.layer1, self.layer2, self.layer3, self.layer4 = layers
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(channels, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.maxpool(functional.relu(self.bn1(self.conv1(x))))
        for layer in (self.layer1, self.layer2, self.layer3, self.layer4):
            x = layer(x)
        logits: Tensor = self.fc(self.avgpool(x).flatten(1))
        return logits


def imagenet_resnet(in_channels: int, classes: int, depth: Depth = 18, width: Count = 64) -> nn.Module:
    """Images [N, in_channels, H, W] to logits [N, classes]; `width` is that of the first layer's 3×3 convolutions."""
    return ImageNetResNet(depth, width, in_channels, classes)
