"""What a reader of the numbers should know of the data: short sentences, or none."""

from hashlib import blake2b
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kdbench.data.dataset import Dataset

IMBALANCE = 3
"""Ratio of the largest to the smallest class beyond which it is said."""


def remarks(dataset: Dataset) -> tuple[str, ...]:
    """All that is to be said of the data, the source's own remarks first."""
    return tuple(filter(None, (*dataset.remarks, imbalance(dataset), repeats(dataset))))


def imbalance(dataset: Dataset) -> str | None:
    """A sentence where the largest class has more than IMBALANCE times the training samples of the smallest."""
    if dataset.y_train is None:
        return None
    classes = len(dataset.classes)
    multi = dataset.task == "multi_label"
    counts = dataset.y_train.sum(axis=0) if multi else np.bincount(dataset.y_train, minlength=classes)
    largest, smallest = int(counts.argmax()), int(counts.argmin())
    if counts[largest] <= IMBALANCE * counts[smallest]:
        return None
    return (
        f"unbalanced classes: {counts[largest]} training samples of '{dataset.classes[largest]}', "
        f"{counts[smallest]} of '{dataset.classes[smallest]}'"
    )


def repeats(dataset: Dataset) -> str | None:
    """A sentence where samples of the test split also stand, value for value, in the training set."""
    seen = {_digest(sample) for sample in dataset.x_train}
    count = sum(_digest(sample) in seen for sample in dataset.x_test)
    if not count:
        return None
    share = f"{count} of {len(dataset.x_test)} test samples also {'stand' if count > 1 else 'stands'}"
    return f"{share} in the training set"


def _digest(sample: NDArray[Any]) -> bytes:
    return blake2b(sample.tobytes(), digest_size=16).digest()
