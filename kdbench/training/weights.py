"""Weights as safetensors files that say which model they belong to: nothing in them is ever executed."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import safetensors.torch
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from kdbench.errors import UserError, first_line
from kdbench.models import build
from kdbench.records import Count, Preprocessing, Versioned, from_json
from kdbench.store import write_atomic

KEY = "kdbench"
"""Under which a file's metadata holds its record as JSON."""


class Trained(Versioned):
    """What a weights file says of itself."""

    model: str
    options: dict[str, Any]
    input_shape: tuple[Count, ...]
    """Of one sample, such as channels, height, width."""
    classes: tuple[str, ...]
    preprocessing: Preprocessing
    fingerprint: str
    """Of everything that the training started from."""
    epoch: int
    """Epochs trained so far."""
    input_dtype: Literal["float32", "int64"] = "float32"
    """Token ids are integers, from 0 to the model's option `vocabulary` − 1."""
    history: tuple[dict[str, float], ...] = ()
    """One entry an epoch: `loss`, the mean of the training loss, and `learning_rate` at its end."""


def save(path: Path, tensors: Mapping[str, Tensor], trained: Trained) -> None:
    contiguous = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    write_atomic(path, safetensors.torch.save(contiguous, metadata={KEY: trained.to_json()}))


def load(path: Path) -> tuple[dict[str, Tensor], Trained]:
    """Tensors and record of a weights file; raises UserError where it is missing, damaged or not ours."""
    if not path.is_file():
        raise UserError(f"{path}: no such file")
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 — not a mapping
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path}: not a readable safetensors file ({first_line(error, 80)})") from None
    if KEY not in metadata:
        raise UserError(f"{path}: does not say which model it belongs to: not written by kdbench")
    return tensors, from_json(Trained, metadata[KEY], f"{path}: metadata")


def load_matching(path: Path, fingerprint: str) -> tuple[dict[str, Tensor], Trained] | None:
    """The file if it is there, sound, and of a training that started from the same things."""
    if not path.is_file():
        return None
    try:
        tensors, trained = load(path)
    except UserError:
        return None
    return (tensors, trained) if trained.fingerprint == fingerprint else None


def model_of(path: Path) -> tuple[nn.Module, Trained]:
    """The model that a weights file belongs to, with these weights, in evaluation mode."""
    tensors, trained = load(path)
    model = build(trained.model, trained.options, trained.input_shape, len(trained.classes), str(path))
    try:
        model.load_state_dict(tensors)
    except RuntimeError as error:
        raise UserError(f"{path}: its tensors don't fit its model: {first_line(error, 200)}") from None
    return model.eval(), trained


def momentum_buffers(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The optimizer's state by parameter number."""
    return {
        str(index): state["momentum_buffer"]
        for index, state in optimizer.state_dict()["state"].items()
        if state.get("momentum_buffer") is not None
    }
