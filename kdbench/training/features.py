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


CHANNELS_FIRST = (
    nn.Conv1d,
    nn.ConvTranspose1d,
    nn.BatchNorm1d,
    nn.MaxPool1d,
    nn.AvgPool1d,
    nn.AdaptiveMaxPool1d,
    nn.AdaptiveAvgPool1d,
)
CHANNELS_LAST = (nn.Linear, nn.LayerNorm, nn.Embedding)


def channels_first(module: nn.Module) -> bool:
    """Whether a module that gives three dimensions gives [N, C, L], not [N, tokens, C] as those of transformers do.

    It says so itself by an attribute `channels_first`, or its type does; of a sequence the last one that tells.
    """
    own = getattr(module, "channels_first", None)
    if own is not None or not isinstance(module, nn.Sequential):
        return bool(own) or isinstance(module, CHANNELS_FIRST)
    for part in reversed(module):
        if channels_first(part) or isinstance(part, CHANNELS_LAST):
            return channels_first(part)
    return False


def observe(model: Model, x: Tensor, layers: Iterable[str] = (), who: str = "model") -> Outputs:
    """Logits of `x`, what each submodule of `layers` gave in its last call, and the parameters by name.

    Of several outputs of a submodule the first is taken; features [N, C, L] come as [N, L, C]. Raises UserError, which
    begins with `who`, for a submodule that is not there, with the nearest one, was not called, or gives no tensor.
    """
    if not isinstance(model, nn.Module):
        return Outputs(model(x))
    features: dict[str, Tensor] = {}

    def keep(name: str) -> Callable[[nn.Module, object, object], None]:
        def hook(module: nn.Module, inputs: object, output: object) -> None:
            first = output[0] if isinstance(output, tuple) and output else output
            if not isinstance(first, Tensor):
                raise UserError(f"{who}: submodule '{name}' gives {type(first).__name__}, not a tensor: name another")
            features[name] = first.transpose(1, 2) if first.ndim == 3 and channels_first(module) else first

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
