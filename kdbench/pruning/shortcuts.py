"""Shortcuts that cut and pad channels by constants, rewritten so that single channels can be taken out of them.

torch-pruning 1.6.1 leaves the constants of option A (He et al., 1512.03385) as they are: the widths stop fitting.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn


def rewritable(model: nn.Module) -> list[str]:
    """Submodules that say by a method `as_convolution()` how the same function is written as one."""
    return [name for name, module in model.named_modules() if callable(getattr(module, "as_convolution", None))]


def redo(model: nn.Module, example: Tensor, options: Mapping[str, Any]) -> None:
    """Puts the convolutions in the place of the `layers`, in place; their weights are constants, and never trained."""
    for name in options["layers"]:
        with torch.random.fork_rng():  # what a new layer would draw
            convolution = model.get_submodule(name).as_convolution()
        like = next(model.parameters())
        put(model, name, convolution.to(device=like.device, dtype=like.dtype).requires_grad_(False))


def put(model: nn.Module, name: str, module: nn.Module) -> None:
    """Puts a module in the place of the submodule `name`."""
    parent, _, last = name.rpartition(".")
    setattr(model.get_submodule(parent), last, module)
