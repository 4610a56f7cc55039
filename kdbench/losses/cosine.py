"""Cosine distance of features (DistilBERT, Sanh et al. 2019, 1910.01108)."""

import torch
from torch import Tensor, nn
from torch.nn import functional

from kdbench.losses.features import Pairs, paired, regress, regressor, same_size
from kdbench.losses.outputs import Outputs


class Cosine(nn.Module):
    """Σ over pairs of mean(1 − cos(r(f_s), f_t)) over samples and positions, cos taken over channels.

    r is a learned linear map where the channels differ in number, else nothing. Maps of different sizes are
    average-pooled to the smaller.
    """

    def __init__(self, student: Outputs, teacher: Outputs, pairs: Pairs) -> None:
        super().__init__()
        self.pairs = pairs
        self.regressors = nn.ModuleList(
            nn.Identity() if ours.shape[1] == theirs.shape[1] else regressor(ours, theirs)
            for ours, theirs in paired(student, teacher, pairs)
        )

    def forward(self, student: Outputs, teacher: Outputs, target: Tensor) -> Tensor:
        """Features [N, C, …] of each pair; `target` is not looked at; from 0 to 2 for each pair."""
        terms = []
        for layer, pair in zip(self.regressors, paired(student, teacher, self.pairs), strict=True):
            ours, theirs = same_size(*pair)
            terms.append((1 - functional.cosine_similarity(regress(layer, ours), theirs, dim=1)).mean())
        return torch.stack(terms).sum()
