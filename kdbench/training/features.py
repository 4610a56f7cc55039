"""Outputs of a model with the features of its submodules, by forward hooks that don't outlive the call."""

from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack

from torch import Tensor, nn

from kdbench.errors import UserError, nearest
from kdbench.losses.outputs import Outputs
from kdbench.losses.weighted import Term

Model = Callable[[Tensor], Tensor]
"""From samples [N, …] to logits [N, C]. Features and parameters are seen in an `nn.Module` alone: any other callable is
a black box."""


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
