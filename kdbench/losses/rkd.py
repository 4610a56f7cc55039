"""Relational knowledge distillation (Park et al. 2019, 1904.05068)."""

import torch
from torch import Tensor, nn
from torch.linalg import vector_norm
from torch.nn import functional

from kdbench.losses.features import Pairs, paired, pooled
from kdbench.losses.outputs import Outputs


class RKD(nn.Module):
    """Σ over pairs of 25 · smoothL1(distances) + 50 · smoothL1(angles) of the batch's pooled features.

    Distances of every two samples are divided by the mean of those above zero; angles are the cosines in every
    triplet of samples. Both depend on the batch size (the angles take N³ numbers), not on the number of channels.
    """

    def __init__(
        self,
        student: Outputs,
        teacher: Outputs,
        pairs: Pairs,
        distance_weight: float = 25.0,
        angle_weight: float = 50.0,
    ) -> None:
        super().__init__()
        self.pairs = pairs
        self.distance_weight = distance_weight
        self.angle_weight = angle_weight

    def forward(self, student: Outputs, teacher: Outputs, target: Tensor) -> Tensor:
        """Features [N, C, …] of each pair; `target` is not looked at."""
        terms = []
        for ours, theirs in paired(student, teacher, self.pairs):
            our_distances, our_angles = _relations(pooled(ours))
            their_distances, their_angles = _relations(pooled(theirs))
            terms.append(self.distance_weight * functional.smooth_l1_loss(our_distances, their_distances))
            terms.append(self.angle_weight * functional.smooth_l1_loss(our_angles, their_angles))
        return torch.stack(terms).sum()


def _relations(vectors: Tensor) -> tuple[Tensor, Tensor]:
    """Distances [N, N] over their mean, and cosines of the angles [N, N, N] at each first sample."""
    differences = vectors[None] - vectors[:, None]
    distances = vector_norm(differences, dim=2)
    mean = distances.sum() / (distances > 0).sum().clamp(min=1)
    directions = functional.normalize(differences, dim=2)
    return distances / mean.clamp(min=1e-12), directions @ directions.transpose(1, 2)
