"""Samples and labels as numpy arrays, raw: preprocessing is applied on reading."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kdbench.errors import UserError, nearest
from kdbench.records import Preprocessing, Task

SPLIT_SEED = 0
"""Of every split made here: fixed, so that no recipe can look for a kind test split."""

Labels = NDArray[np.int64]
"""Classification: [N], 0 … classes − 1. Multi-label: [N, classes], 0 or 1."""


@dataclass(frozen=True)
class Dataset:
    """Raw samples [N, …], channels on axis 1, and their labels, where there are any.

    Samples are images [N, C, H, W], spectrograms [N, 1, mels, frames], features [N, F] or token ids [N, length], which
    have no preprocessing.
    """

    x_train: NDArray[Any]
    y_train: Labels | None
    x_test: NDArray[Any]
    y_test: Labels | None
    classes: tuple[str, ...]
    preprocessing: Preprocessing | None
    task: Task = "classification"
    remarks: tuple[str, ...] = ()
    """What the source did that a reader of the numbers should know."""
    x_held_out: NDArray[Any] | None = None
    """Training samples that are set aside, and not in `x_train`."""
    y_held_out: Labels | None = None
    vocabulary: int | None = None
    """Token ids that its tokenizer knows, seen in the samples or not; None for what was learnt from them."""

    def check(self) -> None:
        """Raises UserError where shapes, labels or values are impossible."""
        if not self.classes:
            raise UserError("the data has no labels that tell its classes: name them in data.options.classes")
        for part in ("train", "test"):
            labels, samples = getattr(self, f"y_{part}"), getattr(self, f"x_{part}")
            if labels is not None:
                check_labels(labels, len(self.classes), f"y_{part}", self.task)
            check_samples(samples, None if labels is None else len(labels), f"x_{part}")
        ours, theirs = self.x_train, self.x_test
        if ours.shape[1:] != theirs.shape[1:] or ours.dtype != theirs.dtype:
            raise UserError(
                f"x_test: samples of shape {theirs.shape[1:]} and {theirs.dtype}, "
                f"those of x_train of {ours.shape[1:]} and {ours.dtype}: make them alike"
            )

    def train_labels(self, purpose: str) -> Labels:
        """The training labels; raises UserError that names the `purpose` where there are none."""
        if self.y_train is None:
            raise UserError(f"data: the training set has no labels: {purpose} needs them; give a source that has them")
        return self.y_train

    def with_validation(self, samples: int) -> "Dataset":
        """The training set cut in two, its second part in the place of the test split.

        Each class has its share of both; without labels, or with several a sample, chance decides.
        """
        if samples >= len(self.x_train):
            raise UserError(f"data.validation_samples: {samples} of {len(self.x_train)} training samples: leave some")
        train, validation = split(self.y_train, len(self.x_train), samples)
        return replace(
            self,
            x_train=self.x_train[train],
            y_train=None if self.y_train is None else self.y_train[train],
            x_test=self.x_train[validation],
            y_test=None if self.y_train is None else self.y_train[validation],
        )

    def with_train_samples(self, samples: int) -> "Dataset":
        """The training set cut to so many samples, of each class its share as in `with_validation`."""
        if samples >= len(self.x_train):
            raise UserError(f"data.train_samples: {samples} of {len(self.x_train)}: leave it out to take them all")
        _, chosen = split(self.y_train, len(self.x_train), samples)
        y_train = None if self.y_train is None else self.y_train[chosen]
        return replace(self, x_train=self.x_train[chosen], y_train=y_train)

    def with_held_out(self, samples: int) -> "Dataset":
        """The training set without as many samples, which are set aside as in `with_validation`."""
        if samples >= len(self.x_train):
            raise UserError(f"data.held_out_samples: {samples} of {len(self.x_train)} training samples: leave some")
        train, held = split(self.y_train, len(self.x_train), samples)
        return replace(
            self,
            x_train=self.x_train[train],
            y_train=None if self.y_train is None else self.y_train[train],
            x_held_out=self.x_train[held],
            y_held_out=None if self.y_train is None else self.y_train[held],
        )


def split(labels: Labels | None, total: int, samples: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Indices of the rest and of `samples` of `total` samples, by class where each sample has one label."""
    if labels is not None and labels.ndim == 1:
        return stratified_split(labels, samples)
    order = np.random.default_rng(SPLIT_SEED).permutation(total)
    return np.sort(order[samples:]), np.sort(order[:samples])


def stratified_split(labels: Labels, samples: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Indices of the rest and of `samples` samples in which each class has its share."""
    from sklearn.model_selection import train_test_split

    index = np.arange(len(labels))
    try:
        rest, held = train_test_split(index, test_size=samples, stratify=labels, random_state=SPLIT_SEED)
    except ValueError as error:
        raise UserError(f"cannot set {samples} of {len(labels)} samples aside by class: {error}") from None
    return rest, held


def set_aside(labels: Labels | None, total: int, samples: int | None) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The split of a source that comes without a test split; raises UserError where it can't be made."""
    if samples is None:
        raise UserError(f"data.options.test_samples: no test split in the data: say how many of {total} to set aside")
    if not 0 < samples < total:
        raise UserError(f"data.options.test_samples: should be between 1 and {total - 1}, not {samples}")
    return split(labels, total, samples)


def class_labels(
    train: Sequence[str] | None, test: Sequence[str] | None, classes: Sequence[str], where: str
) -> tuple[tuple[str, ...], Labels | None, Labels | None]:
    """Classes and integer labels of the names in both splits. Numbers are sorted as numbers, other names as text.

    `classes` names them in that order. Raises UserError for a test label that no training sample has, and where
    `classes` are not as many as there are names.
    """
    reference = train if train is not None else test
    if reference is None:
        return tuple(classes), None, None
    known = sorted(set(reference), key=lambda name: (0, int(name), name) if _is_integer(name) else (1, 0, name))
    if classes and len(classes) != len(known):
        raise UserError(f"data.options.classes: {len(classes)} names, but {where} has {len(known)} classes")
    number = {name: index for index, name in enumerate(known)}

    def numbers(names: Sequence[str] | None) -> Labels | None:
        for name in names or ():
            if name not in number:
                raise UserError(f"{where}: no training sample is labelled '{name}': {nearest(name, known[:20])}")
        return None if names is None else np.array([number[name] for name in names], dtype=np.int64)

    return tuple(classes) or tuple(known), numbers(train), numbers(test)


def _is_integer(text: str) -> bool:
    return text.isascii() and text.removeprefix("-").isdigit() and len(text) < 20


def task_of(labels: NDArray[Any]) -> Task:
    """The task that labels without further notice belong to: two axes mean several labels a sample."""
    return "multi_label" if labels.ndim == 2 else "classification"


def check_labels(labels: NDArray[Any], classes: int | None, name: str, task: Task = "classification") -> None:
    """Raises UserError where labels are not integers from 0 to `classes` − 1, or 0 and 1 for each class."""
    axes, form = (2, "0 or 1 a class") if task == "multi_label" else (1, "one integer a sample")
    if labels.ndim != axes or not np.issubdtype(labels.dtype, np.integer):
        raise UserError(f"{name}: labels should be {form}, not {labels.dtype} of shape {labels.shape}")
    if task == "multi_label" and classes is not None and labels.shape[1] != classes:
        raise UserError(f"{name}: {labels.shape[1]} labels a sample, but {classes} classes")
    highest = 1 if task == "multi_label" else None if classes is None else classes - 1
    for label in (int(labels.min()), int(labels.max())) if labels.size else ():
        if label < 0 or (highest is not None and label > highest):
            allowed = f"0 to {highest}" if highest is not None else "0 or more"
            raise UserError(f"{name}: label {label} is out of range: {allowed} allowed")


def check_samples(samples: NDArray[Any], labels: int | None, name: str) -> None:
    """Raises UserError where there are no samples, another number than of labels, or values that are not finite."""
    if samples.ndim < 2 or not len(samples):
        raise UserError(f"{name}: samples should be an array [N, …] with N of 1 or more, not of shape {samples.shape}")
    if labels is not None and len(samples) != labels:
        raise UserError(f"{name}: {len(samples)} samples, but {labels} labels")
    if not np.issubdtype(samples.dtype, np.number):
        raise UserError(f"{name}: samples should be numbers, not {samples.dtype}")
    if np.issubdtype(samples.dtype, np.floating) and not np.isfinite(samples).all():
        raise UserError(f"{name}: holds NaN or infinite values: remove them")
