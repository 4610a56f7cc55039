"""Knowledge distillation (Hinton, Vinyals, Dean 2015, 1503.02531)."""

from torch import Tensor, nn
from torch.nn import functional

from kdbench.losses.outputs import Outputs, full_precision


class KD(nn.Module):
    """T² · KL(softmax(z_t / T) ‖ softmax(z_s / T)), summed over classes, mean over samples.

    T² keeps the gradient's size the same for every temperature; a higher one softens the targets.
    """

    def __init__(self, student: Outputs, teacher: Outputs, temperature: float = 4.0) -> None:
        super().__init__()
        self.temperature = temperature

    def forward(self, student: Outputs, teacher: Outputs, target: Tensor) -> Tensor:
        """Logits [N, C] of both; `target` is not looked at; a scalar in nats."""
        ours = functional.log_softmax(full_precision(student.logits) / self.temperature, dim=1)
        theirs = functional.log_softmax(full_precision(teacher.logits.detach()) / self.temperature, dim=1)
        return functional.kl_div(ours, theirs, reduction="batchmean", log_target=True) * self.temperature**2
