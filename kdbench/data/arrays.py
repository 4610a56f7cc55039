"""One's own arrays: an `.npz` with `x_train`, `y_train`, `x_test` and `y_test`."""

from pathlib import Path

import numpy as np

from kdbench.data.dataset import Dataset, check_labels
from kdbench.data.preprocess import fit
from kdbench.errors import UserError, nearest
from kdbench.store import read_npz


def load(path: Path, classes: tuple[str, ...] = ()) -> Dataset:
    """Arrays of an `.npz`: samples [N, C, H, W] or, for uint8 images, [N, H, W] or [N, H, W, 1 or 3]; labels [N].

    uint8 samples are scaled to 0…1; all are normalised by the training set's mean and deviation of each channel.
    """
    found = read_npz(path)
    for name in ("x_train", "y_train", "x_test", "y_test"):
        if name not in found:
            raise UserError(f"{path}: no array '{name}' in it: {nearest(name, found)}")
    for part in ("train", "test"):
        check_labels(found[f"y_{part}"], None, f"{path}: y_{part}")
        found[f"x_{part}"] = _channels_first(found[f"x_{part}"])
    highest = max(int(found[f"y_{part}"].max(initial=0)) for part in ("train", "test"))
    train = found["x_train"]
    return Dataset(
        x_train=train,
        y_train=found["y_train"].astype(np.int64),
        x_test=found["x_test"],
        y_test=found["y_test"].astype(np.int64),
        classes=classes or tuple(str(label) for label in range(highest + 1)),
        preprocessing=fit(train, scale=1 / 255 if train.dtype == np.uint8 else 1.0),
    )


def _channels_first(images: np.ndarray) -> np.ndarray:
    if images.dtype == np.uint8 and images.ndim == 3:
        return images[:, None]
    if images.dtype == np.uint8 and images.ndim == 4 and images.shape[-1] in (1, 3) and images.shape[1] not in (1, 3):
        return np.ascontiguousarray(images.transpose(0, 3, 1, 2))
    return images
