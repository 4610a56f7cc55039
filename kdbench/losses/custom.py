"""A user's own loss: a function of a Python file, named as `module.py:function`."""

from collections.abc import Callable
from inspect import signature
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from kdbench import functions
from kdbench.errors import UserError
from kdbench.losses.outputs import Outputs


def load(reference: str, folder: Path) -> Callable[..., Any]:
    """The function; raises UserError where there is none, or it doesn't take what a loss is called with."""
    function = functions.load(reference, folder, "loss")
    if len(signature(function).parameters) < 3:
        raise UserError(f"loss '{reference}': should take student, teacher and target before its options")
    return function


class Custom(nn.Module):
    """`function(student, teacher, target)`, options by name, which gives a scalar tensor; it learns nothing itself."""

    def __init__(self, reference: str, function: Callable[..., Any], options: dict[str, Any]) -> None:
        super().__init__()
        self.reference = reference
        self.function = function
        self.temperature = options.pop("temperature", None)
        self.options = options

    def forward(self, student: Outputs, teacher: Outputs, target: Tensor) -> Tensor:
        scheduled = {} if self.temperature is None else {"temperature": self.temperature}
        value = self.function(student, teacher, target, **self.options, **scheduled)
        if not isinstance(value, torch.Tensor) or value.ndim:
            shape = f" of shape {tuple(value.shape)}" if isinstance(value, torch.Tensor) else ""
            raise UserError(f"loss '{self.reference}': should give a scalar tensor, not {type(value).__name__}{shape}")
        return value
