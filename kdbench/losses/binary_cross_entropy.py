"""Binary cross-entropy with the labels, where classes don't exclude each other."""

from torch import Tensor, nn
from torch.nn import functional

from kdbench.losses.outputs import Outputs, full_precision


class BinaryCrossEntropy(nn.Module):
    """−mean(y · log σ(z_s) + (1 − y) · log(1 − σ(z_s))) over samples and classes: the loss that knows no teacher."""

    tasks = ("multi_label",)
    labelled = True
    taught = False

    def __init__(self, student: Outputs, teacher: Outputs) -> None:
        super().__init__()

    def forward(self, student: Outputs, teacher: Outputs, target: Tensor) -> Tensor:
        """Logits [N, C]; labels `target` [N, C] as 0 and 1, or as shares between them; a scalar in nats."""
        ours = full_precision(student.logits)
        return functional.binary_cross_entropy_with_logits(ours, target.to(ours.dtype))
