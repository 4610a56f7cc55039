"""Hints: features of the teacher as a target (FitNets, Romero et al. 2015, 1412.6550)."""

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from kdbench.losses.features import Pairs, paired, regress, regressor, same_size
from kdbench.losses.outputs import Outputs


class Hint(nn.Module):
    """Σ over pairs of MSE(r(f_s), f_t), where r is a learned 1×1 convolution (linear for vectors) that the loss owns.

    `direction` teacher_to_student regresses the teacher's features to the student's channels instead. `criterion`
    cross_entropy takes softmax over channels of both: −mean Σ_c softmax(f_t) log softmax(f_s), whose minimum is the
    entropy of the teacher's. Maps of different sizes are average-pooled to the smaller.
    """

    def __init__(
        self,
        student: Outputs,
        teacher: Outputs,
        pairs: Pairs,
        direction: Literal["student_to_teacher", "teacher_to_student"] = "student_to_teacher",
        criterion: Literal["mse", "cross_entropy"] = "mse",
    ) -> None:
        super().__init__()
        self.pairs = pairs
        self.from_student = direction == "student_to_teacher"
        self.criterion = functional.mse_loss if criterion == "mse" else _cross_entropy
        self.regressors = nn.ModuleList(
            regressor(ours, theirs) if self.from_student else regressor(theirs, ours)
            for ours, theirs in paired(student, teacher, pairs)
        )

    def forward(self, student: Outputs, teacher: Outputs, target: Tensor) -> Tensor:
        """Features [N, C, …] of each pair; `target` is not looked at."""
        terms = []
        for layer, pair in zip(self.regressors, paired(student, teacher, self.pairs), strict=True):
            ours, theirs = same_size(*pair)
            if self.from_student:
                terms.append(self.criterion(regress(layer, ours), theirs))
            else:
                terms.append(self.criterion(ours, regress(layer, theirs)))
        return torch.stack(terms).sum()


def _cross_entropy(ours: Tensor, theirs: Tensor) -> Tensor:
    return -(theirs.softmax(dim=1) * ours.log_softmax(dim=1)).sum(dim=1).mean()
