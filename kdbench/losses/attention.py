"""Attention transfer (Zagoruyko and Komodakis 2017, 1612.03928)."""

import torch
from torch import Tensor, nn
from torch.nn import functional

from kdbench.losses.features import Pairs, paired, same_size
from kdbench.losses.outputs import Outputs


class Attention(nn.Module):
    """Σ over pairs of mean((Q_s − Q_t)²), Q the map mean_c f², flattened and L2-normalised for each sample.

    It says where in the image a stage is active, whatever the number of channels. The larger map is average-pooled to
    the smaller.
    """

    def __init__(self, student: Outputs, teacher: Outputs, pairs: Pairs) -> None:
        super().__init__()
        self.pairs = pairs

    def forward(self, student: Outputs, teacher: Outputs, target: Tensor) -> Tensor:
        """Features [N, C, …] of each pair; `target` is not looked at."""
        terms = []
        for pair in paired(student, teacher, self.pairs):
            ours, theirs = same_size(*pair)
            terms.append(functional.mse_loss(_map(ours), _map(theirs)))
        return torch.stack(terms).sum()


def _map(features: Tensor) -> Tensor:
    """[N, positions], each row of length 1."""
    return functional.normalize(features.square().mean(dim=1).reshape(len(features), -1), dim=1)
