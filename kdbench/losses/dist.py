"""DIST: knowledge distillation from a stronger teacher (Huang et al. 2022, 2205.10536)."""

from torch import Tensor, nn
from torch.linalg import vector_norm

from kdbench.losses.outputs import Outputs, full_precision


class DIST(nn.Module):
    """β · (1 − mean ρ of rows) + γ · (1 − mean ρ of columns), ρ Pearson's correlation of softmax(z_s) and softmax(z_t).

    Rows are a sample's probabilities of all classes (inter-class), columns a class's probabilities over the batch
    (intra-class): the student matches relations, not values.
    """

    tasks = ("classification",)

    def __init__(self, student: Outputs, teacher: Outputs, beta: float = 1.0, gamma: float = 1.0) -> None:
        super().__init__()
        self.beta = beta
        self.gamma = gamma

    def forward(self, student: Outputs, teacher: Outputs, target: Tensor) -> Tensor:
        """Logits [N, C] of both; `target` is not looked at; a scalar from 0 to 2 · (β + γ)."""
        ours = full_precision(student.logits).softmax(dim=1)
        theirs = full_precision(teacher.logits.detach()).softmax(dim=1)
        inter, intra = 1 - _correlation(ours, theirs), 1 - _correlation(ours.T, theirs.T)
        return self.beta * inter + self.gamma * intra


def _correlation(a: Tensor, b: Tensor) -> Tensor:
    """Mean over rows of Pearson's correlation."""
    a, b = a - a.mean(dim=1, keepdim=True), b - b.mean(dim=1, keepdim=True)
    products: Tensor = (a * b).sum(dim=1) / (vector_norm(a, dim=1) * vector_norm(b, dim=1) + 1e-8)
    return products.mean()
