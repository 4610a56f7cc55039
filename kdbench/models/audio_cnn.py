"""Convolutions over log-mel spectrograms: the Cnn10 of PANNs (Kong et al., 1912.10211), by default a quarter as wide.

Features: `stages.0` … `stages.3` [N, widths[i], mels / 2^(i+1), frames / 2^(i+1)], `pool` [N, widths[-1]], `hidden`.
"""

from typing import Annotated

from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from kdbench.models.layers import ConvNorm, Dropout
from kdbench.records import Count


class MeanAndMax(nn.Module):
    """Mean over the frequencies; of that, mean over time plus largest over time: [N, C, mels, frames] to [N, C]."""

    def forward(self, x: Tensor) -> Tensor:
        x = x.mean(2)
        return x.mean(2) + x.amax(2)


class AudioCNN(nn.Module):
    """Norm of each mel band, stages that halve both axes, pooling, one hidden layer, linear classifier."""

    def __init__(self, mels: int, widths: tuple[int, ...], dropout: float, classes: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(mels)
        self.stages = nn.Sequential(
            *(
                nn.Sequential(ConvNorm(channels, width, 3), ConvNorm(width, width, 3), nn.AvgPool2d(2))
                for channels, width in zip((1, *widths[:-1]), widths, strict=True)
            )
        )
        self.pool = MeanAndMax()
        self.hidden = nn.Linear(widths[-1], widths[-1])
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(widths[-1], classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(x.transpose(1, 2)).transpose(1, 2)
        x = functional.relu(self.hidden(self.dropout(self.pool(self.stages(x)))))
        logits: Tensor = self.head(self.dropout(x))
        return logits


def audio_cnn(
    input_shape: tuple[int, ...],
    classes: int,
    widths: Annotated[tuple[Count, ...], Field(min_length=1)] = (16, 32, 64, 128),
    dropout: Dropout = 0.0,
) -> nn.Module:
    """Log-mel spectrograms [N, 1, mels, frames] to logits [N, classes]; `widths` has one entry a stage.

    Cnn10 itself has the widths 64, 128, 256 and 512.
    """
    if len(input_shape) != 3 or input_shape[0] != 1 or min(input_shape[1:]) < 2 ** len(widths):
        raise ValueError(
            f"takes spectrograms of shape (1, mels, frames), both {2 ** len(widths)} or more for {len(widths)} stages, "
            f"not {input_shape}"
        )
    return AudioCNN(input_shape[1], widths, dropout, classes)
