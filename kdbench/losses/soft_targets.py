"""Soft targets: the distance of probabilities."""

from torch import Tensor, nn
from torch.nn import functional

from kdbench.losses.outputs import Outputs, full_precision


class SoftTargets(nn.Module):
    """Mean over samples and classes of (softmax(z_s) − softmax(z_t))²: bounded, so an unsure teacher can't dominate."""

    tasks = ("classification",)

    def __init__(self, student: Outputs, teacher: Outputs) -> None:
        super().__init__()

    def forward(self, student: Outputs, teacher: Outputs, target: Tensor) -> Tensor:
        """Logits [N, C] of both; `target` is not looked at."""
        ours, theirs = full_precision(student.logits), full_precision(teacher.logits.detach())
        return functional.mse_loss(ours.softmax(dim=1), theirs.softmax(dim=1))
