"""Data sets of the Hugging Face hub by name, or in its formats in a local folder; needs the package `datasets`."""

from pathlib import Path
from typing import Annotated, Any

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from kdbench.data import pixels, preprocess
from kdbench.data.columns import column
from kdbench.data.dataset import Dataset, Labels, class_labels, set_aside
from kdbench.data.vocabulary import Kind, tokens
from kdbench.errors import UserError, first_line, nearest
from kdbench.records import Count


def load(
    name: str | Path,
    config: str | None = None,
    revision: str | None = None,
    train: str = "train",
    test: str = "test",
    test_samples: Count | None = None,
    sample: str = "image",
    label: str = "label",
    size_px: Annotated[int, Field(ge=1, le=4096)] = 32,
    color: pixels.Color = "rgb",
    vocabulary: Kind = "words",
    vocabulary_size: Annotated[int, Field(ge=3)] = 8000,
    length: Count = 64,
    lowercase: bool = True,
    classes: tuple[str, ...] = (),
) -> Dataset:
    """Images of the column `sample` as uint8 [N, C, size_px, size_px], sentences as ids [N, length], or its numbers.

    `train` and `test` name the splits; with `test_samples` so many of the training split are set aside instead. Give a
    `revision` (a commit) for data that stays the same.
    """
    name = str(name)
    splits = _splits(name, config, revision)
    wanted = (train,) if test_samples else (train, test)
    for split in wanted:
        if split not in splits:
            raise UserError(f"{name}: no split '{split}': {nearest(split, splits)}; or give data.options.test_samples")
    parts = [splits[split] for split in wanted]
    for part in parts:
        for needed in (sample, label):
            column({key: [] for key in part.column_names}, needed, name)
    names = [[str(value) for value in part[label]] for part in parts]
    stated = tuple(getattr(parts[0].features[label], "names", None) or ())
    if stated:
        y: list[Labels | None] = [np.array([int(value) for value in part], dtype=np.int64) for part in names]
        known = classes or stated
    else:
        known, *pair = class_labels(names[0], names[-1], classes, name)
        y = pair
    kind = type(parts[0].features[sample]).__name__
    if kind == "Image":
        x: list[NDArray[Any]] = [
            np.stack([pixels.fit(image, size_px, color) for image in part[sample]]) for part in parts
        ]
    elif getattr(parts[0].features[sample], "dtype", "") in ("string", "large_string"):
        sentences = [[str(text) for text in part[sample]] for part in parts]
        x = list(tokens(sentences[0], sentences[-1], vocabulary, vocabulary_size, length, lowercase))
    else:
        x = [_numbers(part[sample], f"{name}: column '{sample}'") for part in parts]
    x_train, y_train, x_test, y_test = x[0], y[0], x[-1], y[-1]
    if test_samples:
        rest, held = set_aside(y[0], len(x[0]), test_samples)
        assert y[0] is not None
        x_train, y_train, x_test, y_test = x[0][rest], y[0][rest], x[0][held], y[0][held]
    text = x_train.dtype == np.int64
    scale = 1 / 255 if kind == "Image" else 1.0
    fitted = None if text else preprocess.fit(x_train, scale)
    return Dataset(x_train, y_train, x_test, y_test, known, fitted)


def _splits(name: str, config: str | None, revision: str | None) -> dict[str, Any]:
    try:
        import datasets
    except ModuleNotFoundError:
        raise UserError("data.source 'huggingface' needs datasets: pip install datasets") from None
    try:
        if (Path(name) / "dataset_dict.json").is_file():
            return dict(datasets.load_from_disk(name))
        return dict(datasets.load_dataset(name, config, revision=revision))
    except Exception as error:  # of the network, of the hub, and of every format that it reads
        raise UserError(f"data.options.name: '{name}' cannot be loaded: {first_line(error)}") from None


def _numbers(values: Any, where: str) -> NDArray[Any]:
    try:
        array = np.asarray(values)
    except ValueError:
        raise UserError(f"{where}: its entries have different lengths: make them alike") from None
    if not np.issubdtype(array.dtype, np.number):
        raise UserError(f"{where}: holds {array.dtype}: images, text or numbers can be used")
    return array if np.issubdtype(array.dtype, np.integer) else array.astype(np.float32)
