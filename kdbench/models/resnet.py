"""ResNet for small images: basic blocks, no stem pooling (He et al., 1512.03385, section 4.2).

Features: `stem`, `stages.0` … `stages.2` [N, width, H / 2^i, W / 2^i] after the last ReLU, `pool`.
"""

import re
from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from kdbench.models.layers import ConvNorm, ImageClassifier

Shortcut = Literal["projection", "pad"]


class Padding(nn.Module):
    """Option A of the paper: every `stride`-th pixel, and channels of zeros in front and behind. No parameters."""

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.in_channels = in_channels
        self.stride = stride
        self.front = (out_channels - in_channels) // 2
        self.behind = out_channels - in_channels - self.front

    def forward(self, x: Tensor) -> Tensor:
        return functional.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, self.front, self.behind))

    def as_convolution(self) -> nn.Conv2d:
        """The same function as a 1×1 convolution that is never trained, so that single channels can be taken out."""
        channels = self.in_channels
        same = nn.Conv2d(channels, self.front + channels + self.behind, 1, self.stride, bias=False)
        with torch.no_grad():
            same.weight.zero_()
            same.weight[self.front : self.front + channels, :, 0, 0] = torch.eye(channels)
        return same.requires_grad_(False)


class Projection(nn.Sequential):
    """Option B of the paper: a 1×1 convolution and its norm."""

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__(nn.Conv2d(in_channels, out_channels, 1, stride, bias=False), nn.BatchNorm2d(out_channels))


class Block(nn.Module):
    """Two 3×3 convolutions and a shortcut, which changes the shape where they do."""

    def __init__(self, in_channels: int, out_channels: int, stride: int, shortcut: Shortcut) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, stride, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(out_channels)
        change = Padding if shortcut == "pad" else Projection
        same = in_channels == out_channels and stride == 1
        self.shortcut = nn.Identity() if same else change(in_channels, out_channels, stride)

    def forward(self, x: Tensor) -> Tensor:
        y = functional.relu(self.norm1(self.conv1(x)))
        return functional.relu(self.norm2(self.conv2(y)) + self.shortcut(x))


def resnet(
    in_channels: int,
    classes: int,
    widths: list[int] | None = None,
    blocks: list[int] | None = None,
    depth: int | None = None,
    stem: int | None = None,
    shortcut: Shortcut = "projection",
) -> nn.Module:
    """Images [N, in_channels, H, W] to logits [N, classes]; `widths` and `blocks` have one entry a stage.

    Each stage after the first halves the image. `depth`, the layers as in "ResNet-56", stands for equally many blocks
    in each stage. The `stem` is as wide as the first stage where nothing else is said. The default is CIFAR's ResNet-20
    with 1×1 shortcuts; the paper's own has the shortcut `pad`.
    """
    widths = widths or [16, 32, 64]
    if depth is not None:
        each, rest = divmod(depth - 2, 2 * len(widths))
        if blocks is not None:
            raise ValueError("depth and blocks say the same thing: give one of them")
        if each < 1 or rest:
            raise ValueError(f"depth {depth} should be {2 * len(widths)}·n + 2 for {len(widths)} stages")
        blocks = [each] * len(widths)
    blocks = blocks or [3] * len(widths)
    stem = widths[0] if stem is None else stem
    if len(widths) != len(blocks) or min(stem, *widths, *blocks) < 1:
        raise ValueError(f"widths {widths} and blocks {blocks} should be as many, each 1 or more, like the stem")
    if shortcut == "pad" and [stem, *widths] != sorted([stem, *widths]):
        raise ValueError(f"widths {widths} shrink: shortcut 'pad' can only add channels")
    layers = ConvNorm(in_channels, stem, 3)
    stages: list[nn.Module] = []
    channels = stem
    for stage, (width, count) in enumerate(zip(widths, blocks, strict=True)):
        first = Block(channels, width, 2 if stage else 1, shortcut)
        stages.append(nn.Sequential(first, *(Block(width, width, 1, shortcut) for _ in range(count - 1))))
        channels = width
    return ImageClassifier(layers, stages, channels, classes)


def from_common_names(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A state_dict in the naming that public CIFAR ResNets share, in ours; other keys are kept.

    `conv1`, `bn1` → `stem.0`, `stem.1`; `layer1.0.bn1` → `stages.0.0.norm1`; `downsample` → `shortcut`;
    `linear`, `fc` → `head`; a `module.` in front, which DataParallel leaves, is dropped.
    """
    return {_renamed(key.removeprefix("module.")): tensor for key, tensor in tensors.items()}


def _renamed(key: str) -> str:
    key = re.sub(r"^layer(\d+)", lambda found: f"stages.{int(found[1]) - 1}", key)
    key = re.sub(r"^conv1\.", "stem.0.", key)
    key = re.sub(r"^bn1\.", "stem.1.", key)
    key = re.sub(r"^(linear|fc)\.", "head.", key)
    return key.replace(".bn", ".norm").replace(".downsample.", ".shortcut.")
