"""The classifier of a model that anybody made: found by its number of outputs, and replaced for other classes."""

import copy

from torch import nn

from kdbench.errors import UserError


def classifier(model: nn.Module, outputs: int) -> str | None:
    """Name of the last linear layer or convolution of so many outputs; None where there is none below the model."""
    found = None
    for name, module in model.named_modules():
        if name and _outputs(module) == outputs:
            found = name
    return found


def replace(model: nn.Module, outputs: int, classes: int, field: str) -> None:
    """Puts a new layer with random weights for `classes` classes in the classifier's place."""
    name = classifier(model, outputs)
    if name is None:
        raise UserError(f"{field}.new_head: the model has no linear layer of {outputs} outputs that could be replaced")
    old = model.get_submodule(name)
    model.set_submodule(name, _like(old, classes))


def _outputs(module: nn.Module) -> int | None:
    if isinstance(module, nn.Linear):
        return module.out_features
    return module.out_channels if isinstance(module, nn.Conv1d | nn.Conv2d) else None


def _like(old: nn.Module, classes: int) -> nn.Module:
    """A layer of the same kind and inputs, with fresh weights."""
    assert isinstance(old, nn.Linear | nn.Conv1d | nn.Conv2d)
    new = copy.deepcopy(old)
    new.weight = nn.Parameter(old.weight.new_empty(classes, *old.weight.shape[1:]))
    if old.bias is not None:
        new.bias = nn.Parameter(old.bias.new_empty(classes))
    setattr(new, "out_features" if isinstance(new, nn.Linear) else "out_channels", classes)
    new.reset_parameters()
    return new
