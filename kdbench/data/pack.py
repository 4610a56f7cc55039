"""EvalPack: evaluation samples, labels and calibration samples in one `.npz`, for machines without torch and data."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kdbench.data import preprocess
from kdbench.data.dataset import Dataset, Labels, check_labels, check_samples, task_of
from kdbench.errors import UserError, nearest
from kdbench.records import Preprocessing, Task, TensorSpec, Versioned, from_json
from kdbench.store import Arrays, read_npz, write_npz


class PackMeta(Versioned):
    task: Task = "classification"
    classes: tuple[str, ...] = ()
    preprocessing: Preprocessing | None = None


@dataclass(frozen=True)
class EvalPack:
    """Samples as stored, preprocessed on reading. Calibration samples come from the training set alone."""

    name: str
    x_test: NDArray[Any] | None
    y_test: Labels | None
    x_calibration: NDArray[Any] | None
    classes: tuple[str, ...]
    preprocessing: Preprocessing | None
    task: Task = "classification"
    y_calibration: Labels | None = None
    """By which a budget of accuracy is judged; older packs have none."""

    def test_inputs(self, inputs: Sequence[TensorSpec], preprocessing: Preprocessing | None = None) -> Arrays:
        """All evaluation samples as the model's input, under the model's own `preprocessing` where it has one.

        A pack without preprocessing is fed as it is. Raises UserError where the samples don't fit the model.
        """
        return self._feed("x_test", self.x_test, inputs, preprocessing)

    def calibration_inputs(self, inputs: Sequence[TensorSpec], preprocessing: Preprocessing | None = None) -> Arrays:
        """All calibration samples, likewise."""
        return self._feed("x_calibration", self.x_calibration, inputs, preprocessing)

    def labels(self, outputs: Sequence[TensorSpec]) -> Labels:
        """The labels, checked against the number of classes that the model answers with."""
        if self.y_test is None:
            raise UserError(f"{self.name}: no array 'y_test' in it: needed for accuracy and F1; compare by --against")
        check_labels(self.y_test, classes_told(outputs, self.task), f"{self.name}: y_test", self.task)
        return self.y_test

    def _feed(
        self, part: str, samples: NDArray[Any] | None, inputs: Sequence[TensorSpec], own: Preprocessing | None
    ) -> Arrays:
        if samples is None:
            raise UserError(f"{self.name}: no array '{part}' in it")
        if len(inputs) != 1:
            names = ", ".join(spec.name for spec in inputs)
            raise UserError(f"{self.name}: feeds models of one input, this one has {len(inputs)} ({names})")
        spec = inputs[0]
        # A model that takes the samples' own integers has its preprocessing inside.
        inside = np.issubdtype(samples.dtype, np.integer) and spec.dtype == samples.dtype.name
        wanted = None if inside else self.preprocessing and (own or self.preprocessing)
        values = preprocess.apply(samples, wanted, f"{self.name}: '{part}'")
        expected = spec.shape[1:]
        if len(values.shape) != len(spec.shape) or any(
            isinstance(size, int) and size != actual for size, actual in zip(expected, values.shape[1:], strict=True)
        ):
            raise UserError(
                f"{self.name}: '{part}' has samples of shape {values.shape[1:]}, the model's input '{spec.name}' "
                f"takes {tuple(size if size is not None else '?' for size in expected)}"
            )
        if spec.dtype == "object" or not np.can_cast(values.dtype, spec.dtype, "same_kind"):
            raise UserError(
                f"{self.name}: '{part}' is {values.dtype}, the model's input '{spec.name}' takes {spec.dtype}"
            )
        return {spec.name: np.ascontiguousarray(values, dtype=spec.dtype)}


def classes_told(outputs: Sequence[TensorSpec], task: Task) -> int | None:
    """How many classes the shape of a model's first output tells of, if it does.

    One column tells of none, but of the single label that any may have: it may hold the classes themselves.
    """
    width = outputs[0].shape[1] if outputs and len(outputs[0].shape) == 2 else None
    return width if isinstance(width, int) and (width > 1 or task == "multi_label") else None


def pack_of(dataset: Dataset, calibration_samples: int, seed: int, name: str) -> EvalPack:
    """The pack of a dataset, its calibration samples drawn from the training set."""
    count = min(calibration_samples, len(dataset.x_train))
    chosen = np.sort(np.random.default_rng(seed).choice(len(dataset.x_train), count, replace=False))
    return EvalPack(
        name,
        dataset.x_test,
        dataset.y_test,
        dataset.x_train[chosen],
        dataset.classes,
        dataset.preprocessing,
        dataset.task,
        None if dataset.y_train is None else dataset.y_train[chosen],
    )


def save_pack(path: Path, dataset: Dataset, calibration_samples: int, seed: int) -> bytes:
    """Writes the pack of a dataset; returns the file's bytes."""
    pack = pack_of(dataset, calibration_samples, seed, str(path))
    meta = PackMeta(task=pack.task, classes=pack.classes, preprocessing=pack.preprocessing)
    arrays = {
        "x_test": pack.x_test,
        "x_calibration": pack.x_calibration,
        "meta": np.frombuffer(meta.to_json().encode(), dtype=np.uint8),
        "y_test": pack.y_test,
        "y_calibration": pack.y_calibration,
    }
    return write_npz(path, {name: values for name, values in arrays.items() if values is not None})


def open_pack(pack: "EvalPack | str | Path | None") -> EvalPack | None:
    """The pack of a path; a pack as it is."""
    return load_pack(Path(pack)) if isinstance(pack, str | Path) else pack


def open_filed(pack: "EvalPack | str | Path | None") -> EvalPack | None:
    """`open_pack` for results, which hold the hash of the pack's file: raises UserError for one that is not what a file
    holds."""
    if isinstance(pack, EvalPack) and not (Path(pack.name).is_file() and _alike(pack, load_pack(Path(pack.name)))):
        raise UserError(
            f"pack: '{pack.name}' is not what a file of that name holds, whose hash is part of results: save its "
            "arrays as .npz, and give the path"
        )
    return open_pack(pack)


def _alike(one: EvalPack, other: EvalPack) -> bool:
    return all(np.array_equal(getattr(one, field.name), getattr(other, field.name)) for field in fields(EvalPack))


def load_pack(path: Path) -> EvalPack:
    """A pack, or any `.npz` with `x_test`, `y_test` and `x_calibration`, whose samples are then fed as they are.

    Labels without a record of their task are of several classes a sample where they have two axes.
    """
    arrays = read_npz(path)
    known = ("x_test", "y_test", "x_calibration", "y_calibration", "meta")
    for name in arrays:
        if name not in known:
            raise UserError(f"{path}: unknown array '{name}': {nearest(name, known)}")
    meta = PackMeta()
    if "meta" in arrays:
        try:
            text = arrays["meta"].tobytes().decode()
            json.loads(text)
        except ValueError:
            raise UserError(f"{path}: its 'meta' is damaged: make the pack again") from None
        meta = from_json(PackMeta, text, f"{path}: meta")
    labels = {part: arrays[f"y_{part}"] for part in ("test", "calibration") if f"y_{part}" in arrays}
    task = meta.task if "meta" in arrays or not labels else task_of(next(iter(labels.values())))
    for part, values in labels.items():
        check_labels(values, len(meta.classes) or None, f"{path}: y_{part}", task)
        labels[part] = values.astype(np.int64)
    for part in ("test", "calibration"):
        if f"x_{part}" in arrays:
            check_samples(arrays[f"x_{part}"], len(labels[part]) if part in labels else None, f"{path}: x_{part}")
    if not arrays.keys() & {"x_test", "x_calibration"}:
        raise UserError(f"{path}: neither 'x_test' nor 'x_calibration' in it: not a pack")
    return EvalPack(
        str(path),
        arrays.get("x_test"),
        labels.get("test"),
        arrays.get("x_calibration"),
        meta.classes,
        meta.preprocessing,
        task,
        labels.get("calibration"),
    )
