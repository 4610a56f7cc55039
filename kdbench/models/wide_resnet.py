"""Wide residual networks for small images: norm and ReLU before each convolution (Zagoruyko & Komodakis, 1605.07146).

Features: `stem`, `stages.0` … `stages.2` [N, 16·width·2^i, H / 2^i, W / 2^i] before norm and ReLU, `pool`.
"""

from torch import Tensor, nn
from torch.nn import functional

from kdbench.models.layers import Dropout, ImageClassifier
from kdbench.records import Count


class Block(nn.Module):
    """Twice norm, ReLU and 3×3 convolution; where the shape changes, the shortcut starts behind the first ReLU."""

    def __init__(self, in_channels: int, out_channels: int, stride: int, dropout: float) -> None:
        super().__init__()
        self.norm1 = nn.BatchNorm2d(in_channels)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, stride, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(out_channels)
        self.dropout = nn.Dropout(dropout)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False)
        same = in_channels == out_channels and stride == 1
        self.shortcut = None if same else nn.Conv2d(in_channels, out_channels, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        first = functional.relu(self.norm1(x))
        y = functional.relu(self.norm2(self.conv1(first)))
        y = self.conv2(self.dropout(y))
        summed: Tensor = y + (x if self.shortcut is None else self.shortcut(first))
        return summed


class WideResNet(ImageClassifier):
    """The classifier with norm and ReLU behind the last stage."""

    def __init__(self, stem: nn.Module, stages: list[nn.Module], channels: int, classes: int) -> None:
        super().__init__(stem, stages, channels, classes)
        self.norm = nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        last = functional.relu(self.norm(self.stages(self.stem(x))))
        logits: Tensor = self.head(self.pool(last).flatten(1))
        return logits


def wide_resnet(in_channels: int, classes: int, depth: int = 16, width: Count = 2, dropout: Dropout = 0.0) -> nn.Module:
    """Images [N, in_channels, H, W] to logits [N, classes]; WRN-`depth`-`width`."""
    blocks, rest = divmod(depth - 4, 6)
    if blocks < 1 or rest:
        raise ValueError(f"depth {depth} should be 6·n + 4")
    stages: list[nn.Module] = []
    channels = 16
    for stage in range(3):
        wide = 16 * width * 2**stage
        first = Block(channels, wide, 2 if stage else 1, dropout)
        stages.append(nn.Sequential(first, *(Block(wide, wide, 1, dropout) for _ in range(blocks - 1))))
        channels = wide
    return WideResNet(nn.Conv2d(in_channels, 16, 3, padding=1, bias=False), stages, channels, classes)
