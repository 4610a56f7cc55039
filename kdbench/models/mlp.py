"""Multilayer perceptron: hidden layers with ReLU (Rumelhart, Hinton & Williams, 1986).

Features: `stages.0` … one for each hidden layer [N, widths[i]].
"""

from itertools import pairwise
from math import prod

from torch import Tensor, nn

from kdbench.models.layers import Dropout
from kdbench.records import Count


class MLP(nn.Module):
    """Hidden layers and a linear classifier."""

    def __init__(self, features: int, widths: tuple[int, ...], dropout: float, classes: int) -> None:
        super().__init__()
        self.stages = nn.Sequential(
            *(
                nn.Sequential(nn.Linear(before, width), nn.ReLU(), nn.Dropout(dropout))
                for before, width in pairwise((features, *widths))
            )
        )
        self.head = nn.Linear((features, *widths)[-1], classes)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(self.stages(x.flatten(1)))
        return logits


def mlp(
    input_shape: tuple[int, ...], classes: int, widths: tuple[Count, ...] = (128, 128), dropout: Dropout = 0.0
) -> nn.Module:
    """Rows of a table [N, features], or anything else flattened, to logits [N, classes]; one width a hidden layer."""
    return MLP(prod(input_shape), widths, dropout, classes)
