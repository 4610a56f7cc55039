"""Samples and labels as numpy arrays, raw: preprocessing is applied on reading."""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kdbench.errors import UserError
from kdbench.records import Preprocessing

SPLIT_SEED = 0
"""Of every split made here: fixed, so that no recipe can look for a kind test split."""


@dataclass(frozen=True)
class Dataset:
    """Raw samples, channels first, and integer labels. `x_…` is [N, C, H, W]; `y_…` is [N], 0 … len(classes) − 1."""

    x_train: NDArray[Any]
    y_train: NDArray[np.int64]
    x_test: NDArray[Any]
    y_test: NDArray[np.int64]
    classes: tuple[str, ...]
    preprocessing: Preprocessing

    def check(self) -> None:
        """Raises UserError where shapes, labels or values are impossible."""
        for part in ("train", "test"):
            check_labels(getattr(self, f"y_{part}"), len(self.classes), f"y_{part}")
            check_samples(getattr(self, f"x_{part}"), len(getattr(self, f"y_{part}")), f"x_{part}")
        if self.x_train.shape[1:] != self.x_test.shape[1:]:
            raise UserError(
                f"x_test: samples of shape {self.x_test.shape[1:]}, those of x_train {self.x_train.shape[1:]}"
            )

    def with_validation(self, samples: int) -> "Dataset":
        """The training set cut in two, its second part in the place of the test split."""
        if samples >= len(self.y_train):
            raise UserError(f"data.validation_samples: {samples} of {len(self.y_train)} training samples: leave some")
        train, validation = stratified_split(self.y_train, samples)
        return replace(
            self,
            x_train=self.x_train[train],
            y_train=self.y_train[train],
            x_test=self.x_train[validation],
            y_test=self.y_train[validation],
        )


def stratified_split(labels: NDArray[np.int64], samples: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Indices of the rest and of `samples` samples in which each class has its share."""
    from sklearn.model_selection import train_test_split

    index = np.arange(len(labels))
    try:
        rest, held = train_test_split(index, test_size=samples, stratify=labels, random_state=SPLIT_SEED)
    except ValueError as error:
        raise UserError(f"cannot set {samples} of {len(labels)} samples aside by class: {error}") from None
    return rest, held


def check_labels(labels: NDArray[Any], classes: int | None, name: str) -> None:
    """Raises UserError where labels are not integers from 0 to `classes` − 1."""
    if labels.ndim != 1 or not np.issubdtype(labels.dtype, np.integer):
        raise UserError(f"{name}: labels should be one integer a sample, not {labels.dtype} of shape {labels.shape}")
    for label in (int(labels.min()), int(labels.max())) if labels.size else ():
        if label < 0 or (classes is not None and label >= classes):
            allowed = f"0 to {classes - 1}" if classes is not None else "0 or more"
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
