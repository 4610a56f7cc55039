"""A user's own code: a function of a Python file, named as `module.py:function`."""

import sys
from collections.abc import Callable
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import FunctionType
from typing import Any

from kdbench.errors import UserError, first_line, nearest


def is_own(name: str) -> bool:
    """Whether `name` is of the form `module.py:function`."""
    return ":" in name


def find(name: str, folder: Path) -> Path | None:
    """The file or folder `name`: beside the recipe, in `folder`, or else in the working directory."""
    return next((path for path in (folder / name, Path(name)) if path.exists()), None)


def real(path: Path) -> Path:
    """A file by way of links, where what lies beside it is found; the link where the file has another name, which then
    does not tell what it is, as in stores by hash."""
    found = path.resolve()
    return found if found.name == path.name else path


def source(reference: str, folder: Path, what: str) -> Path:
    """The file of `module.py:function`, looked for beside the recipe, in `folder`; `what` begins an error."""
    name = reference.rpartition(":")[0]
    path = find(name, folder)
    if path is None or not path.is_file():
        raise UserError(f"{what} '{reference}': no file '{name}' beside the recipe or in the working directory")
    return real(path)


def load(reference: str, folder: Path, what: str) -> Callable[..., Any]:
    """The function, and nothing else of its file; raises UserError where there is none, or the file fails."""
    path, function = source(reference, folder, what), reference.rpartition(":")[2]
    spec = spec_from_file_location(f"kdbench_custom_{path.stem}", path)
    if spec is None or spec.loader is None:
        raise UserError(f"{what} '{reference}': {path.name} is not a Python file: its name should end in .py")
    module = module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:  # whatever the user's file raises
        reason = f"{type(error).__name__}: {first_line(error)}"
        raise UserError(f"{what} '{reference}': {path} fails with {reason}") from error
    functions = {name: value for name, value in vars(module).items() if isinstance(value, FunctionType)}
    if function not in functions:
        raise UserError(f"{what} '{reference}': no function '{function}' in {path}: {nearest(function, functions)}")
    return functions[function]
