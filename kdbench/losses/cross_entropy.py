"""Cross-entropy with the labels."""

from torch import Tensor, nn
from torch.nn import functional

from kdbench.losses.outputs import Outputs, full_precision


class CrossEntropy(nn.Module):
    """−mean log softmax(z_s)[target]: the loss that knows no teacher."""

    def __init__(self, student: Outputs, teacher: Outputs) -> None:
        super().__init__()

    def forward(self, student: Outputs, teacher: Outputs, target: Tensor) -> Tensor:
        """Labels `target` as integers [N], or as shares of the classes [N, classes]; a scalar in nats."""
        return functional.cross_entropy(full_precision(student.logits), target)
