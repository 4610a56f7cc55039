"""Knowledge distillation where classes don't exclude each other."""

from torch import Tensor, nn
from torch.nn import functional

from kdbench.losses.outputs import Outputs, full_precision


class MultiLabel(nn.Module):
    """T² · BCE(σ(z_s / T), σ(z_t / T)), mean over samples and classes: each class is a question of its own.

    Its minimum, at equal logits, is T² times the teacher's mean binary entropy.
    """

    tasks = ("multi_label",)

    def __init__(self, student: Outputs, teacher: Outputs, temperature: float = 2.0) -> None:
        super().__init__()
        self.temperature = temperature

    def forward(self, student: Outputs, teacher: Outputs, target: Tensor) -> Tensor:
        """Logits [N, C] of both; `target` is not looked at; a scalar in nats."""
        ours = full_precision(student.logits) / self.temperature
        theirs = full_precision(teacher.logits.detach()) / self.temperature
        return functional.binary_cross_entropy_with_logits(ours, theirs.sigmoid()) * self.temperature**2
