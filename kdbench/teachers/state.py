"""state_dicts that others wrote: safetensors, or torch files of plain tensors; nothing in them is ever executed."""

import json
import pickle
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor, nn

from kdbench.errors import UserError, first_line
from kdbench.pruning.changes import Change
from kdbench.records import parse

NESTED = ("state_dict", "model_state_dict", "model", "net")
"""Where training scripts put a state_dict among other things."""

PREFIXES = ("module.", "_orig_mod.")
"""What DataParallel and torch.compile leave in front of names."""

SHOWN = 3

KEY = "kdbench"
"""Under which the metadata of a weights file of ours holds its record as JSON."""


def read(path: Path) -> dict[str, Tensor]:
    """The tensors of a .safetensors, .pth, .th, .pt or .bin file by name, without what wrappers leave in front.

    Raises UserError where the file is missing, damaged, or holds anything but tensors and plain data.
    """
    if not path.is_file():
        raise UserError(f"{path}: not a file")
    try:
        found: Any = load_file(path) if path.suffix == ".safetensors" else _plain(path)
    except SafetensorError as error:
        raise UserError(f"{path}: not a readable safetensors file ({first_line(error, 80)})") from None
    for _ in NESTED:
        key = next((key for key in NESTED if isinstance(found, Mapping) and isinstance(found.get(key), Mapping)), None)
        found = found if key is None else found[key]
    if not isinstance(found, Mapping) or not found or not all(isinstance(part, Tensor) for part in found.values()):
        raise UserError(f"{path}: holds no state_dict: save model.state_dict()")
    tensors = {str(name): tensor for name, tensor in found.items()}
    for prefix in PREFIXES * 2:
        if all(name.startswith(prefix) for name in tensors):
            tensors = {name.removeprefix(prefix): tensor for name, tensor in tensors.items()}
    return tensors


def changes(path: Path) -> tuple[Change, ...] | None:
    """What a weights file of kdbench says was done to the structure of its network, such as pruning; None for a file
    that others wrote.

    Raises UserError where that can't be read.
    """
    if path.suffix != ".safetensors":
        return None
    try:
        with safe_open(path, framework="pt") as file:
            own = (file.metadata() or {}).get(KEY)
        if own is None:
            return None
        return tuple(parse(Change, one, f"{path}: metadata") for one in json.loads(own).get("changes", ()))
    except SafetensorError as error:
        raise UserError(f"{path}: not a readable safetensors file ({first_line(error, 80)})") from None
    except (ValueError, TypeError, AttributeError):
        raise UserError(f"{path}: metadata: not what kdbench writes: save the weights again") from None


def _plain(path: Path) -> Any:
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        if "Weights only load failed" in str(error) and "GLOBAL" in str(error):
            raise UserError(
                f"{path}: a pickle that is not plain weights: refused, it could run code; save model.state_dict()"
            ) from None
        raise UserError(f"{path}: not a readable torch file, or cut off: save it again") from None
    except (RuntimeError, EOFError, OSError, ValueError, KeyError, zipfile.BadZipFile):
        raise UserError(f"{path}: not a readable torch file, or cut off: save it again") from None


def fill(
    model: nn.Module, tensors: Mapping[str, Tensor], where: str, field: str, head: str | None, new_head: bool
) -> None:
    """Loads `tensors` into the model, with `new_head` all but those of the submodule `head`.

    Raises UserError, which begins with `where`, with the numbers of missing, unexpected and misshapen tensors, and the
    first of each.
    """
    own = model.state_dict()
    in_head = {name for name in {*own, *tensors} if head is not None and name.startswith(f"{head}.")}
    given = dict(tensors)
    if new_head:
        given = {name: tensor for name, tensor in given.items() if name not in in_head}
        given |= {name: own[name] for name in in_head & own.keys()}
    # Counted since PyTorch 0.4.1, and not looked at while batch norm has a momentum.
    given |= {name: own[name] for name in own.keys() - given.keys() if name.endswith("num_batches_tracked")}
    faults = {
        "missing": [name for name in own if name not in given],
        "unexpected": [name for name in given if name not in own],
        "of another shape": [name for name in own if name in given and given[name].shape != own[name].shape],
    }
    shapes = [f"{tuple(given[name].shape)} for {tuple(own[name].shape)}" for name in faults["of another shape"][:1]]
    wrong = {name for names in faults.values() for name in names}
    if wrong:
        said = ", ".join(f"{_tensors(names)} {kind} ({_some(names)})" for kind, names in faults.items() if names)
        said = "; ".join([said, *shapes])
        hint = (
            f"only the head's: set {field}.new_head = true and give {field}.training"
            if wrong <= in_head
            else f"give {field}.options as it was trained with"
        )
        raise UserError(f"{where}: does not fit the model: {said}: {hint}")
    model.load_state_dict(given)


def _tensors(names: list[str]) -> str:
    return f"{len(names)} tensor{'s' if len(names) > 1 else ''}"


def _some(names: list[str]) -> str:
    return ", ".join(names[:SHOWN]) + (", …" if len(names) > SHOWN else "")
