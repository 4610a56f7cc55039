"""Several teachers at once: averaged where all know all classes, each by its own classes where they don't."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from kdbench.losses.outputs import Outputs, full_precision


class Voice(NamedTuple):
    """What one of several teachers says of a batch."""

    outputs: Outputs
    """Logits [N, K] of the classes that it knows."""
    classes: Tensor
    """[K]: their places among the data's classes, ascending."""
    weight: float


def averaged(voices: Sequence[Voice]) -> Outputs:
    """The weighted mean of the logits of teachers that know the same classes.

    It is the geometric mean of their distributions (Hinton, Vinyals, Dean 2015, 1503.02531, take this or the
    arithmetic one): a class that one of them rules out is ruled out.
    """
    total = sum(voice.weight for voice in voices)
    return Outputs(torch.stack([full_precision(v.outputs.logits) * (v.weight / total) for v in voices]).sum(dim=0))


def conditional(
    loss: Callable[[Outputs, Outputs, Tensor | None], Tensor],
    student: Outputs,
    voices: Sequence[Voice],
    target: Tensor | None,
    exclusive: bool = True,
) -> Tensor:
    """Σ w · loss of the student's logits of the classes that a teacher knows; the weights sum to 1.

    Softmax over a part of the logits is the distribution given that the class is one of them (Vongkulbhisal et al.
    2019, 1904.04434). Of classes that exclude each other (`exclusive`) a teacher is heard where the label, or most of
    its shares, is one that it knows: of other samples its answer means nothing. Without labels it is heard for all.
    """
    total = sum(voice.weight for voice in voices)
    values = []
    for voice in voices:
        rows, labels = _heard(target, voice.classes, student.logits, exclusive)
        if not len(rows):
            continue
        ours = Outputs(student.logits[rows][:, voice.classes], places=_taken(student.places, rows))
        theirs = Outputs(voice.outputs.logits[rows])
        values.append(voice.weight / total * len(rows) / len(student.logits) * loss(ours, theirs, labels))
    return torch.stack(values).sum() if values else student.logits.sum() * 0.0


def _taken(values: Tensor | None, rows: Tensor) -> Tensor | None:
    return None if values is None else values[rows]


def _heard(target: Tensor | None, classes: Tensor, logits: Tensor, exclusive: bool) -> tuple[Tensor, Tensor | None]:
    """Which rows a teacher of `classes` is heard for, and their labels as places among these classes, or as shares."""
    if target is None or not exclusive:
        return torch.arange(len(logits), device=logits.device), None if target is None else target[:, classes]
    if target.ndim == 1:
        place = torch.full((logits.shape[1],), -1, dtype=torch.long, device=target.device)
        place[classes] = torch.arange(len(classes), device=target.device)
        rows = torch.nonzero(place[target] >= 0)[:, 0]
        return rows, place[target[rows]]
    known = target[:, classes]
    rows = torch.nonzero(known.sum(dim=1) >= 0.5)[:, 0]
    return rows, known[rows] / known[rows].sum(dim=1, keepdim=True)
