"""Convolutions over the tokens of a text, the largest answer of each (Kim, 1408.5882).

Features: `embedding` [N, L, embedding], `convolutions.0` … one for each kernel [N, width, ≥ L], `pool`
[N, width · kernels].
"""

from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from kdbench.models.layers import Dropout, word_vectors
from kdbench.records import Count

Kernels = Annotated[tuple[Count, ...], Field(min_length=1)]


class Convolution(nn.Module):
    """[N, C, L] to [N, width, L + 1]: a window at each token and one on padding alone, then ReLU."""

    channels_first = True

    def __init__(self, channels: int, width: int, kernel: int) -> None:
        super().__init__()
        self.conv = nn.Conv1d(channels, width, kernel)
        self.kernel = kernel

    def forward(self, x: Tensor) -> Tensor:
        # Padding is a vector of zeros. With a window on nothing else in every text, more padding changes no maximum.
        return functional.relu(self.conv(functional.pad(x, (0, self.kernel))))


class MaxOverTime(nn.Module):
    """The largest value of each channel: several [N, C, L] to one vector [N, ΣC]."""

    def forward(self, features: list[Tensor]) -> Tensor:
        return torch.cat([feature.amax(2) for feature in features], dim=1)


class TextCNN(nn.Module):
    """Embedding, convolutions side by side, maximum over time, dropout, linear classifier."""

    def __init__(
        self, vocabulary: int, embedding: int, width: int, kernels: tuple[int, ...], dropout: float, classes: int
    ) -> None:
        super().__init__()
        self.embedding = word_vectors(vocabulary, embedding)
        self.convolutions = nn.ModuleList([Convolution(embedding, width, kernel) for kernel in kernels])
        self.pool = MaxOverTime()
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(width * len(kernels), classes)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embedding(tokens).transpose(1, 2)
        logits: Tensor = self.head(self.dropout(self.pool([convolution(x) for convolution in self.convolutions])))
        return logits


def text_cnn(
    classes: int,
    vocabulary: Count,
    embedding: Count = 300,
    width: Count = 100,
    kernels: Kernels = (3, 4, 5),
    dropout: Dropout = 0.5,
) -> nn.Module:
    """Token ids [N, L] below `vocabulary`, 0 for padding, to logits [N, classes]; `width` maps for each kernel size."""
    return TextCNN(vocabulary, embedding, width, kernels, dropout, classes)
