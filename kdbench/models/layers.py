"""Layers that several families share."""

from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor, nn

Dropout = Annotated[float, Field(ge=0, lt=1)]
"""Share of the values that training sets to 0."""

PAD = 0
"""The token id that fills short texts up."""


def word_vectors(vocabulary: int, width: int) -> nn.Embedding:
    """Vectors of tokens, that of padding 0, the others between ±0.25 as in Kim's network (1408.5882).

    PyTorch's own, of variance 1, drown what a few thousand sentences teach: a text CNN loses four points by them.
    """
    vectors = nn.Embedding(vocabulary, width, padding_idx=PAD)
    with torch.no_grad():
        vectors.weight[PAD + 1 :].uniform_(-0.25, 0.25)
    return vectors


class ConvNorm(nn.Sequential):
    """Convolution that keeps the image's size (divided by its stride), batch norm, and `activation` if there is one."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel: int,
        stride: int = 1,
        groups: int = 1,
        activation: type[nn.Module] | None = nn.ReLU,
        bias: bool = False,
    ) -> None:
        super().__init__(
            nn.Conv2d(in_channels, out_channels, kernel, stride, kernel // 2, groups=groups, bias=bias),
            nn.BatchNorm2d(out_channels),
            *([activation()] if activation else []),
        )


class ChannelShuffle(nn.Module):
    """Takes the channels of `groups` groups in turns (Zhang et al., 1707.01083): [N, C, H, W] to the same."""

    def __init__(self, groups: int) -> None:
        super().__init__()
        self.groups = groups

    def forward(self, x: Tensor) -> Tensor:
        n, channels, height, width = x.shape
        grouped = x.reshape(n, self.groups, channels // self.groups, height, width)
        return grouped.transpose(1, 2).flatten(1, 2)

    def channel_order(self, channels: int) -> list[int]:
        """For each channel that comes out the one that goes in."""
        order: list[int] = torch.arange(channels).reshape(self.groups, -1).t().flatten().tolist()
        return order


class MaskedMean(nn.Module):
    """Mean over the tokens that are not padding: features [N, L, width] and token ids [N, L] to [N, width]."""

    def forward(self, x: Tensor, tokens: Tensor) -> Tensor:
        mask = (tokens != PAD).unsqueeze(2).to(x.dtype)
        return (x * mask).sum(1) / mask.sum(1).clamp(min=1)


class ImageClassifier(nn.Module):
    """Stem, stages, mean over the image, linear classifier: images [N, C, H, W] to logits [N, classes]."""

    def __init__(self, stem: nn.Module, stages: list[nn.Module], channels: int, classes: int) -> None:
        super().__init__()
        self.stem = stem
        self.stages = nn.Sequential(*stages)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.head = nn.Linear(channels, classes)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(self.pool(self.stages(self.stem(x))).flatten(1))
        return logits
