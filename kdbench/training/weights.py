"""Weights as safetensors files that say which model they belong to: nothing in them is ever executed."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np
import safetensors.torch
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from kdbench.errors import UserError, first_line, nearest
from kdbench.losses.outputs import below
from kdbench.pruning.changes import Change, replay
from kdbench.records import Count, Preprocessing, Task, Versioned, from_json
from kdbench.store import write_atomic
from kdbench.teachers import architecture
from kdbench.teachers.classes import ClassMap
from kdbench.teachers.source import Wanted
from kdbench.teachers.state import KEY

T = TypeVar("T")


class Trained(Versioned):
    """What a weights file says of itself."""

    source: str = "zoo"
    """Of the model: one of the teachers' sources."""
    model: str
    options: dict[str, Any]
    architecture: dict[str, Any] = {}  # noqa: RUF012 — pydantic copies defaults
    """What its source needs to build it again, where its name doesn't tell."""
    input_shape: tuple[Count, ...]
    """Of one sample, such as channels, height, width."""
    task: Task = "classification"
    classes: tuple[str, ...]
    preprocessing: Preprocessing | None
    fingerprint: str
    """Of everything that the training started from."""
    epoch: int
    """Epochs trained so far, or the best one's number."""
    input_dtype: Literal["float32", "int64"] = "float32"
    """Token ids are integers, from 0 to the model's option `vocabulary` − 1."""
    class_map: ClassMap | None = None
    """Where the model's outputs are not the classes, one by one."""
    history: tuple[dict[str, float], ...] = ()
    """One entry an epoch: `loss`, the mean of the training loss, `loss.NAME` of each loss in it without its weight,
    `learning_rate` at its end, and `held_out`, what the model achieved on the held-out samples, where there are any."""
    kept: Literal["last", "best"] = "last"
    """Which of its epochs the weights are of."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """It was trained in."""
    processes: Count = 1
    """That trained it together; no part of the fingerprint, so that one process goes on from what several made."""
    changes: tuple[Change, ...] = ()
    """Of its structure since it was built: pruning, factorising."""
    bf16_speedup: float | None = None
    """How many times faster bf16 was, where the precision was chosen by a measurement."""


def input_dtype(samples: NDArray[Any]) -> Literal["float32", "int64"]:
    """What a model of such samples takes: token ids where they are integers."""
    return "int64" if np.issubdtype(samples.dtype, np.integer) else "float32"


def save(path: Path, tensors: Mapping[str, Tensor], trained: Trained) -> None:
    """Weights that layers share are written for each of them, for the format has no memory in common."""
    copies = {
        name: tensor.detach().cpu().clone(memory_format=torch.contiguous_format) for name, tensor in tensors.items()
    }
    write_atomic(path, safetensors.torch.save(copies, metadata={KEY: trained.to_json()}))


def load(path: Path) -> tuple[dict[str, Tensor], Trained]:
    """Tensors and record of a weights file; raises UserError where it is missing, damaged or not ours."""
    return _read(path, lambda file: {name: file.get_tensor(name) for name in file.keys()})  # noqa: SIM118


def record(path: Path) -> Trained:
    """What a weights file says of itself, without its tensors; raises UserError as `load` does."""
    return _read(path, lambda file: None)[1]


def _read(path: Path, content: Callable[[Any], T]) -> tuple[T, Trained]:
    if not path.is_file():
        raise UserError(f"{path}: no such file")
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            found = content(file)
    except (SafetensorError, OSError) as error:
        raise UserError(
            f"{path}: not a readable safetensors file ({first_line(error, 80)}): give weights that kdbench has "
            "written, such as runs/digits/student.safetensors"
        ) from None
    if KEY not in metadata:
        raise UserError(f"{path}: does not say which model it belongs to: not written by kdbench")
    return found, from_json(Trained, metadata[KEY], f"{path}: metadata")


def load_matching(path: Path, fingerprint: str) -> tuple[dict[str, Tensor], Trained] | None:
    """The file if it is there, sound, and of a training that started from the same things."""
    if not path.is_file():
        return None
    try:
        tensors, trained = load(path)
    except UserError:
        return None
    return (tensors, trained) if trained.fingerprint == fingerprint else None


def model_of(path: Path, folder: Path | None = None) -> tuple[nn.Module, Trained]:
    """The model that a weights file belongs to, with these weights, in evaluation mode.

    In `folder` lies the code of a user's own model, which is not run without it.
    """
    tensors, trained = load(path)
    wanted = Wanted(
        model=trained.model,
        options=trained.options,
        architecture=trained.architecture,
        input_shape=trained.input_shape,
        classes=trained.class_map.own if trained.class_map else len(trained.classes),
        folder=folder,
        tokens=trained.input_dtype == "int64",
        task=trained.task,
        field=str(path),
    )
    with torch.random.fork_rng():
        model = architecture(trained.source, wanted)
        replay(model, trained.changes, example(trained), str(path))
    try:
        model.load_state_dict(tensors)
    except RuntimeError as error:
        raise UserError(f"{path}: its tensors don't fit its model: {first_line(error, 200)}") from None
    return model.eval(), trained


def example(trained: Trained) -> Tensor:
    """Two samples that its model can take; what they are made of means nothing."""
    dtype = torch.int64 if trained.input_dtype == "int64" else torch.float32
    return torch.zeros(2, *trained.input_shape, dtype=dtype)


def start_from(student: nn.Module, teacher: Callable[..., Any], layers: Mapping[str, str]) -> None:
    """Copies weights and buffers of the teacher's submodules into those of the student, by name {student's: teacher's}.

    Raises UserError where one is not there, or what is in them differs in names or shapes.
    """
    if not isinstance(teacher, nn.Module):
        if layers:
            raise UserError("distill.start_from: the teacher is a black box that gives logits alone: leave it out")
        return
    for ours, theirs in layers.items():
        target = _tensors("student", student, ours)
        source = _tensors("teacher", teacher, theirs)
        for name in sorted({*target, *source}):
            shapes = [str(tuple(t[name].shape)) if name in t else "nothing" for t in (target, source)]
            if shapes[0] != shapes[1]:
                raise UserError(
                    f"distill.start_from: '{ours}' of the student and '{theirs}' of the teacher differ in "
                    f"'{name or ours}': {shapes[0]} and {shapes[1]}: name layers of equal shapes"
                )
            with torch.no_grad():
                target[name].copy_(source[name])


def _tensors(who: str, model: nn.Module, layer: str) -> dict[str, Tensor]:
    state = model.state_dict()
    found = below(state, layer)
    if not found:
        known = {name for name, module in model.named_modules() if name and module.state_dict()}
        raise UserError(f"distill.start_from: {who} has no weights in '{layer}': {nearest(layer, {*known, *state})}")
    return found
