"""A user's own loss: a function of a Python file, named as `module.py:function`."""

import sys
from collections.abc import Callable
from importlib.util import module_from_spec, spec_from_file_location
from inspect import signature
from pathlib import Path
from types import FunctionType
from typing import Any

import torch
from torch import Tensor, nn

from kdbench.errors import UserError, first_line, nearest
from kdbench.losses.outputs import Outputs


def source(reference: str, folder: Path) -> Path:
    """The file of `module.py:function`: beside the recipe, in `folder`, or else in the working directory."""
    name = reference.rpartition(":")[0]
    for path in (folder / name, Path(name)):
        if path.is_file():
            return path.resolve()
    raise UserError(f"loss '{reference}': no file '{name}' beside the recipe or in the working directory")


def load(reference: str, folder: Path) -> Callable[..., Any]:
    """The function, and nothing else of its file; raises UserError where there is none, or the file fails."""
    path, function = source(reference, folder), reference.rpartition(":")[2]
    spec = spec_from_file_location(f"kdbench_custom_{path.stem}", path)
    if spec is None or spec.loader is None:
        raise UserError(f"loss '{reference}': {path.name} is not a Python file: its name should end in .py")
    module = module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    try:
        spec.loader.exec_module(module)
    except Exception as error:  # whatever the user's file raises
        raise UserError(f"loss '{reference}': {path} fails with {type(error).__name__}: {first_line(error)}") from error
    functions = {name: value for name, value in vars(module).items() if isinstance(value, FunctionType)}
    if function not in functions:
        raise UserError(f"loss '{reference}': no function '{function}' in {path}: {nearest(function, functions)}")
    if len(signature(functions[function]).parameters) < 3:
        raise UserError(f"loss '{reference}': should take student, teacher and target before its options")
    return functions[function]


class Custom(nn.Module):
    """`function(student, teacher, target, **options)`, which gives a scalar tensor; it learns nothing of its own."""

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
