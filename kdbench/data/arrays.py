"""One's own arrays: an `.npz` with `x_train`, `y_train`, `x_test` and `y_test`."""

from pathlib import Path

import numpy as np

from kdbench.data.dataset import Dataset, check_labels, task_of
from kdbench.data.preprocess import fit
from kdbench.errors import UserError, nearest
from kdbench.store import read_npz


def load(path: Path, classes: tuple[str, ...] = (), labelled: bool = True) -> Dataset:
    """Arrays of an `.npz`: samples [N, C, H, W] or, for uint8 images, [N, H, W] or [N, H, W, 1 or 3].

    Labels are integers [N], or 0 and 1 [N, classes] where a sample has several; with `labelled` false there are none
    for training, and `y_test` may be absent too. uint8 samples are scaled to 0…1; all numbers are normalised by the
    training set's mean and deviation of each channel, but int32 and int64, which are taken for token ids.
    """
    found = read_npz(path)
    needed = ("x_train", "y_train", "x_test", "y_test") if labelled else ("x_train", "x_test")
    for name in needed:
        if name not in found:
            raise UserError(f"{path}: no array '{name}' in it: {nearest(name, found)}")
    if not labelled:
        found.pop("y_train", None)
    known = {part: found[f"y_{part}"] for part in ("train", "test") if f"y_{part}" in found}
    task = task_of(next(iter(known.values()))) if known else "classification"
    for part, values in known.items():
        check_labels(values, None, f"{path}: y_{part}", task)
        known[part] = values.astype(np.int64)
    if not classes and known:
        multi = task == "multi_label"
        count = max(values.shape[1] if multi else int(values.max(initial=0)) + 1 for values in known.values())
        classes = tuple(str(label) for label in range(count))
    train, test = (_channels_first(found[f"x_{part}"]) for part in ("train", "test"))
    tokens = train.dtype in (np.int32, np.int64)
    return Dataset(
        x_train=train,
        y_train=known.get("train"),
        x_test=test,
        y_test=known.get("test"),
        classes=classes,
        preprocessing=None if tokens else fit(train, scale=1 / 255 if train.dtype == np.uint8 else 1.0),
        task=task,
    )


def _channels_first(images: np.ndarray) -> np.ndarray:
    if images.dtype == np.uint8 and images.ndim == 3:
        return images[:, None]
    if images.dtype == np.uint8 and images.ndim == 4 and images.shape[-1] in (1, 3) and images.shape[1] not in (1, 3):
        return np.ascontiguousarray(images.transpose(0, 3, 1, 2))
    return images
