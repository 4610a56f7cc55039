"""Deep mutual learning (Zhang et al. 2018, 1706.00384): student and teacher learn together, each from the other.

The one way in which a teacher is trained while it teaches. The pair is trained as one model with one optimizer: no
gradient passes from one network to the other, so that each learns as it would with an optimizer of its own.
"""

from collections.abc import Mapping, Sequence

from torch import Tensor, nn

from kdbench.losses.outputs import Outputs
from kdbench.losses.weighted import Term, WeightedSum

STUDENT, PEER = "student", "peer"
"""The pair's submodules."""


class Pair(nn.Module):
    """Two networks that see the same batch. The student's logits are the pair's; the peer's are those of `peer`."""

    def __init__(self, student: nn.Module, peer: nn.Module) -> None:
        super().__init__()
        self.student = student
        self.peer = peer

    def forward(self, x: Tensor) -> Tensor:
        self.peer(x)
        logits: Tensor = self.student(x)
        return logits


class MutualSum(nn.Module):
    """The weighted sum of the losses of the student taught by its peer, and of the peer taught by the student."""

    def __init__(self, terms: Sequence[Term], pair: Outputs) -> None:
        """Builds the losses of both from sample outputs of the pair, with the peer's logits among its features."""
        super().__init__()
        ours, theirs = _both(pair)
        self.terms = list(terms)
        self.student = WeightedSum(terms, ours, theirs)
        self.peer = WeightedSum(terms, theirs, ours)

    def begin(self, epoch: int, history: Sequence[Mapping[str, float]]) -> None:
        self.student.begin(epoch, history)
        self.peer.begin(epoch, history)

    def forward(self, pair: Outputs, teacher: object, target: Tensor | None) -> tuple[Tensor, dict[str, Tensor]]:
        """The sum of both, and each loss of the student's, without weight; `teacher` is not looked at."""
        ours, theirs = _both(pair)
        value, values = self.student(ours, _without_gradient(theirs), target)
        other, _ = self.peer(theirs, _without_gradient(ours), target)
        return value + other, values


def _both(pair: Outputs) -> tuple[Outputs, Outputs]:
    ours = Outputs(pair.logits, places=pair.places, labels=pair.labels)
    return ours, ours._replace(logits=pair.features[PEER])


def _without_gradient(outputs: Outputs) -> Outputs:
    return outputs._replace(logits=outputs.logits.detach())
