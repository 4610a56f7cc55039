"""Parameter distillation: the student's weights are drawn to the teacher's."""

from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from kdbench.errors import UserError, nearest
from kdbench.losses.logits import kl_divergence
from kdbench.losses.outputs import Outputs, below, full_precision


class Parameters(nn.Module):
    """Mean over matched parameters of mean((w_s − w_t)²), or of KL(softmax(w_t) ‖ softmax(w_s)) of the flattened ones.

    `layers` names submodules, or single parameters, of the student and of the teacher two by two; without it, all
    parameters that both have under the same name are matched. Equal shapes are compared directly. Otherwise w_s is
    multiplied along each dimension of another size by a learned matrix [size in the teacher, size in the student]
    that the loss owns, at first the identity, cut off or filled up with zeros.
    """

    def __init__(
        self,
        student: Outputs,
        teacher: Outputs,
        layers: Annotated[list[tuple[str, str]], Field(min_length=1)] | None = None,
        criterion: Literal["l2", "kl"] = "l2",
    ) -> None:
        super().__init__()
        if not teacher.parameters:
            raise UserError("parameters: the teacher is a black box that gives logits alone: leave this loss out")
        self.distance = _l2 if criterion == "l2" else _kl
        self.names = _matched(student, teacher, layers)
        self.projections = nn.ModuleList()
        for ours, theirs in self.names:
            sizes = list(zip(student.parameters[ours].shape, teacher.parameters[theirs].shape, strict=False))
            if student.parameters[ours].ndim != teacher.parameters[theirs].ndim:
                raise UserError(
                    f"parameters: {ours} of the student has shape {tuple(student.parameters[ours].shape)}, {theirs} of "
                    f"the teacher {tuple(teacher.parameters[theirs].shape)}: name other 'layers'"
                )
            like = full_precision(student.parameters[ours])
            self.projections.append(
                nn.ParameterDict(
                    {
                        str(dim): nn.Parameter(torch.eye(to, size, device=like.device, dtype=like.dtype))
                        for dim, (size, to) in enumerate(sizes)
                        if size != to
                    }
                )
            )

    def forward(self, student: Outputs, teacher: Outputs, target: Tensor) -> Tensor:
        """Parameters by name of both; logits and `target` are not looked at."""
        terms = []
        for (name, their_name), projection in zip(self.names, self.projections, strict=True):
            ours = full_precision(student.parameters[name])
            for dim, matrix in dict(projection.named_parameters()).items():
                ours = torch.tensordot(matrix, ours, dims=([1], [int(dim)])).movedim(0, int(dim))
            terms.append(self.distance(ours, full_precision(teacher.parameters[their_name].detach())))
        return torch.stack(terms).mean()


def _matched(student: Outputs, teacher: Outputs, layers: list[tuple[str, str]] | None) -> list[tuple[str, str]]:
    """Names of parameters, two by two; raises UserError for unknown ones and layers that have none in common."""
    if layers is None:
        names = [(name, name) for name in student.parameters if name in teacher.parameters]
        if not names:
            raise UserError("parameters: student and teacher have no parameter of the same name: name 'layers'")
        return names
    names = []
    for ours, theirs in layers:
        sides = {}
        for who, layer, outputs in (("student", ours, student), ("teacher", theirs, teacher)):
            sides[who] = below(outputs.parameters, layer)
            if not sides[who]:
                raise UserError(f"parameters: {who} has none in '{layer}': {nearest(layer, outputs.parameters)}")
        common = [name for name in sides["student"] if name in sides["teacher"]]
        if not common:
            raise UserError(f"parameters: '{ours}' and '{theirs}' have none of the same name: name other 'layers'")
        names += [(f"{ours}.{name}" if name else ours, f"{theirs}.{name}" if name else theirs) for name in common]
    return names


def _l2(ours: Tensor, theirs: Tensor) -> Tensor:
    return (ours - theirs).square().mean()


def _kl(ours: Tensor, theirs: Tensor) -> Tensor:
    return kl_divergence(ours.reshape(1, -1), theirs.reshape(1, -1))
