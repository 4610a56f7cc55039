"""Outputs of a model with the features of its submodules, by forward hooks that don't outlive the call."""

from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from kdbench.data.preprocess import apply
from kdbench.errors import UserError, nearest
from kdbench.losses.outputs import Outputs
from kdbench.losses.weighted import Term
from kdbench.records import Preprocessing
from kdbench.teachers.classes import ClassMap

Model = Callable[[Tensor], Tensor]
"""From samples [N, …] to logits [N, C]. Features and parameters are seen in an `nn.Module` alone: any other callable is
a black box."""


@dataclass(frozen=True)
class Teaching:
    """A teacher at work: what answers, what it wants to see, and how its answers are read."""

    model: Model
    preprocessing: Preprocessing | None
    class_map: ClassMap | None = None

    def freeze(self) -> None:
        """Evaluation mode and no gradients: it is never trained while it teaches."""
        if isinstance(self.model, nn.Module):
            self.model.eval().requires_grad_(False)

    def sees(self, samples: NDArray[Any], x: Tensor, preprocessing: Preprocessing | None) -> Tensor:
        """Raw samples [N, …] as the teacher sees them: `x`, which is them under `preprocessing`, if that is its own."""
        same = self.preprocessing == preprocessing
        return x if same else torch.from_numpy(apply(samples, self.preprocessing)).to(x.device)

    def observe(self, x: Tensor, layers: Iterable[str] = ()) -> Outputs:
        """What it gives for samples that it sees, its logits for the data's classes."""
        outputs = observe(self.model, x, layers, "teacher")
        return outputs if self.class_map is None else outputs._replace(logits=self.class_map(outputs.logits))


def observe(model: Model, x: Tensor, layers: Iterable[str] = (), who: str = "model") -> Outputs:
    """Logits of `x`, what each submodule of `layers` gave in its last call, and the parameters by name.

    Of several outputs of a submodule the first is taken. Raises UserError, which begins with `who`, for a submodule
    that is not there, with the nearest one, was not called, or gives no tensor.
    """
    if not isinstance(model, nn.Module):
        return Outputs(model(x))
    features: dict[str, Tensor] = {}

    def keep(name: str) -> Callable[[nn.Module, object, object], None]:
        def hook(module: nn.Module, inputs: object, output: object) -> None:
            first = output[0] if isinstance(output, tuple) and output else output
            if not isinstance(first, Tensor):
                raise UserError(f"{who}: submodule '{name}' gives {type(first).__name__}, not a tensor: name another")
            features[name] = first

        return hook

    modules = {name: module for name, module in model.named_modules() if name}
    with ExitStack() as hooks:
        for name in set(layers):
            if name not in modules:
                raise UserError(f"{who}: no submodule '{name}': {nearest(name, modules)}")
            hooks.callback(modules[name].register_forward_hook(keep(name)).remove)
        logits = model(x)
    for name in layers:
        if name not in features:
            raise UserError(f"{who}: submodule '{name}' is not called in a forward pass: name another")
    return Outputs(logits, features, dict(model.named_parameters()))


def layers(terms: Sequence[Term]) -> tuple[list[str], list[str]]:
    """Submodules of the student and of the teacher whose features the losses read."""
    pairs = [pair for term in terms for pair in term.pairs]
    return sorted({ours for ours, _ in pairs}), sorted({theirs for _, theirs in pairs})


def sample_outputs(
    student: nn.Module,
    teacher: Teaching | None,
    x: Tensor,
    theirs: Tensor,
    labels: Tensor | None,
    terms: Sequence[Term],
) -> tuple[Outputs, Outputs]:
    """One forward pass of both in evaluation mode: the shapes that losses are built from.

    `x` are samples as the student sees them, `theirs` the same ones as the teacher does; `labels` are those of the
    whole training set, if it has any. Raises UserError for a loss that needs more of the teacher than its logits where
    these are all that it gives.
    """
    for term in terms:
        if term.pairs and not (teacher and isinstance(teacher.model, nn.Module)):
            name = getattr(teacher and teacher.model, "__name__", "none")
            raise UserError(
                f"distill.losses.{term.name}: needs features of the teacher, and '{name}' is a black box that gives "
                "logits alone: take losses on logits, such as kd"
            )
    our_layers, their_layers = layers(terms)
    student.eval()
    with torch.no_grad():
        seen = observe(student, x, our_layers, "student")._replace(labels=labels)
        return seen, seen if teacher is None else teacher.observe(theirs, their_layers)
