"""Cross-entropy with the labels."""

from typing import Annotated

from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from kdbench.losses.outputs import Outputs, full_precision


class CrossEntropy(nn.Module):
    """−mean log softmax(z_s)[target]: the loss that knows no teacher.

    `label_smoothing` ε mixes the label with the uniform distribution: (1 − ε) · onehot + ε / C (1512.00567).
    """

    tasks = ("classification",)
    labelled = True
    taught = False

    def __init__(
        self, student: Outputs, teacher: Outputs, label_smoothing: Annotated[float, Field(ge=0, le=1)] = 0.0
    ) -> None:
        super().__init__()
        self.label_smoothing = label_smoothing

    def forward(self, student: Outputs, teacher: Outputs, target: Tensor) -> Tensor:
        """Labels `target` as integers [N], or as shares of the classes [N, classes]; a scalar in nats."""
        return functional.cross_entropy(full_precision(student.logits), target, label_smoothing=self.label_smoothing)
