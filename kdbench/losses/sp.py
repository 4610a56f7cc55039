"""Similarity-preserving distillation (Tung and Mori 2019, 1907.09682)."""

import torch
from torch import Tensor, nn
from torch.nn import functional

from kdbench.losses.features import Pairs, paired
from kdbench.losses.outputs import Outputs


class SP(nn.Module):
    """Σ over pairs of ‖rownorm(F_s F_sᵀ) − rownorm(F_t F_tᵀ)‖² / N², F the features flattened to [N, …].

    Which samples of a batch resemble each other: it depends on the batch size, not on the features' shapes.
    """

    def __init__(self, student: Outputs, teacher: Outputs, pairs: Pairs) -> None:
        super().__init__()
        self.pairs = pairs

    def forward(self, student: Outputs, teacher: Outputs, target: Tensor) -> Tensor:
        """Features [N, C, …] of each pair; `target` is not looked at."""
        both = paired(student, teacher, self.pairs)
        return torch.stack(
            [functional.mse_loss(_similarities(ours), _similarities(theirs)) for ours, theirs in both]
        ).sum()


def _similarities(features: Tensor) -> Tensor:
    """[N, N], each row of length 1."""
    flat = features.flatten(1)
    return functional.normalize(flat @ flat.T, dim=1)
