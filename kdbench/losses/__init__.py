"""Distillation losses. To add one: a module with an `nn.Module`, and its line in LOSSES.

A loss is built as `Loss(student, teacher, **options)` from sample outputs, which give it the shapes that it needs, and
called as `loss(student, teacher, target)`. It owns the parameters that it learns with, such as regressors.
"""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from kdbench.errors import pick
from kdbench.losses.cross_entropy import CrossEntropy
from kdbench.losses.kd import KD
from kdbench.losses.outputs import Outputs

LOSSES: dict[str, type[nn.Module]] = {
    "cross_entropy": CrossEntropy,
    "kd": KD,
}


class WeightedSum(nn.Module):
    """Σ weight · loss, computed in float32 also under autocast."""

    def __init__(
        self,
        weights: Mapping[str, float],
        options: Mapping[str, Mapping[str, float]],
        student: Outputs,
        teacher: Outputs,
    ) -> None:
        """Builds each loss of `weights` with its `options`; raises UserError for an unknown name."""
        super().__init__()
        self.weights = dict(weights)
        self.losses = nn.ModuleDict(
            {name: pick(LOSSES, name, "loss")(student, teacher, **options.get(name, {})) for name in weights}
        )

    def forward(self, student: Outputs, teacher: Outputs, target: Tensor) -> Tensor:
        with torch.autocast(student.logits.device.type, enabled=False):
            terms = [weight * self.losses[name](student, teacher, target) for name, weight in self.weights.items()]
            return torch.stack(terms).sum()
