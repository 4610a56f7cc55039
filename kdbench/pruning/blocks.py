"""Whole residual blocks: which ones can go, what each of them does for the outputs, and their removal."""

from collections.abc import Mapping, Sequence
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn

from kdbench.pruning.shortcuts import put


def removable(model: nn.Module, x: Tensor, ignore: Sequence[str] = ()) -> list[str]:
    """Residual blocks with an identity as shortcut, by name: with all weights at 0 they give back what they are given.

    Of nested ones the innermost; those in or around submodules named in `ignore` stay. `x` are samples [N, …].
    """
    model = deepcopy(model).eval()
    seen: dict[str, tuple[tuple[Any, ...], Any]] = {}
    names = [name for name, module in model.named_modules() if name and next(module.parameters(), None) is not None]
    hooks = [
        model.get_submodule(name).register_forward_hook(
            lambda module, given, made, name=name: seen.update({name: (given, made)})  # type: ignore[misc]
        )
        for name in names
    ]
    with torch.no_grad():
        model(x)
    for hook in hooks:
        hook.remove()
    found = [name for name in names if name in seen and _passes(model.get_submodule(name), *seen[name])]
    inner = [name for name in found if not any(other.startswith(f"{name}.") for other in found)]
    return [name for name in inner if not any(_within(name, kept) or _within(kept, name) for kept in ignore)]


def effects(model: nn.Module, blocks: Sequence[str], x: Tensor) -> dict[str, float]:
    """What skipping each block changes in the outputs for samples `x`: the mean squared difference, as a share of the
    mean squared output."""
    model = deepcopy(model).eval()
    found = {}
    with torch.no_grad():
        whole = model(x)
        for name in blocks:
            block = model.get_submodule(name)
            put(model, name, nn.Identity())
            found[name] = float((model(x) - whole).square().mean() / whole.square().mean())
            put(model, name, block)
    return found


def redo(model: nn.Module, example: Tensor, options: Mapping[str, Any]) -> None:
    """Lets the `blocks` pass on what they are given, in place."""
    for name in options["blocks"]:
        model.get_submodule(name)  # raises where it is not there
        put(model, name, nn.Identity())


def _passes(block: nn.Module, given: tuple[Any, ...], made: Any) -> bool:
    """Whether a block gives back the one tensor that it is given where its weights are 0."""
    if len(given) != 1 or not isinstance(given[0], Tensor) or not isinstance(made, Tensor):
        return False
    if given[0].shape != made.shape or not bool(given[0].any()):
        return False
    silent = deepcopy(block)
    with torch.no_grad():
        for parameter in silent.parameters():
            parameter.zero_()
        return bool(torch.equal(silent(given[0]), given[0]))


def _within(name: str, other: str) -> bool:
    return name == other or name.startswith(f"{other}.")
