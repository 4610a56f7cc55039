"""The four idx files of MNIST and the sets made like it, gzipped or not, in one folder."""

import gzip
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kdbench.data.dataset import Dataset, check_labels
from kdbench.data.preprocess import fit
from kdbench.errors import UserError

TYPES = {0x08: "u1", 0x09: "i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}
"""numpy's type for each type code of the format, big-endian."""


def load(path: Path, classes: tuple[str, ...] = ()) -> Dataset:
    """Images [N, 1, H, W] and labels of `train-images-idx3-ubyte`, `t10k-labels-idx1-ubyte` and so on in a folder."""
    arrays = {(part, kind): _array(path, part, kind) for part in ("train", "t10k") for kind in ("images", "labels")}
    for (part, kind), array in arrays.items():
        if kind == "images" and (array.ndim < 3 or not array.size):
            raise UserError(f"{path}: {part}-images: should be images [N, H, W], not an array of shape {array.shape}")
        if kind == "labels":
            check_labels(array, None, f"{path}: {part}-labels")
    y_train, y_test = (arrays[part, "labels"].astype(np.int64) for part in ("train", "t10k"))
    x_train, x_test = (arrays[part, "images"][:, None] for part in ("train", "t10k"))
    highest = max(y_train.max(initial=0), y_test.max(initial=0))
    return Dataset(
        x_train=x_train,
        y_train=y_train,
        x_test=x_test,
        y_test=y_test,
        classes=classes or tuple(str(label) for label in range(highest + 1)),
        preprocessing=fit(x_train, scale=1 / 255 if x_train.dtype == np.uint8 else 1.0),
    )


def parse(content: bytes, where: str) -> NDArray[Any]:
    """The array of an idx file, gzipped or not; raises UserError where it is damaged."""
    if content[:2] == b"\x1f\x8b":
        try:
            content = gzip.decompress(content)
        except (OSError, EOFError, zlib.error) as error:
            raise UserError(f"{where}: damaged gzip file ({error}): fetch it again") from None
    if len(content) < 4 or content[:2] != b"\0\0" or content[2] not in TYPES:
        raise UserError(f"{where}: not an idx file: its first four bytes are {content[:4].hex(' ') or 'missing'}")
    axes = content[3]
    start = 4 + 4 * axes
    shape = tuple(int.from_bytes(content[i : i + 4], "big") for i in range(4, start, 4))
    dtype = np.dtype(TYPES[content[2]])
    expected = dtype.itemsize
    for size in shape:
        expected *= size
    if len(content) < start or len(content) - start != expected:
        raise UserError(
            f"{where}: {len(content)} bytes, but its header promises {start + expected}: cut off? fetch it again"
        )
    if axes > 4 or not expected:
        raise UserError(f"{where}: an array of shape {shape[:5]}: images have 3 or 4 axes, labels 1, and none is 0")
    return np.frombuffer(content, dtype, offset=start).reshape(shape).astype(dtype.newbyteorder("="))


def _array(folder: Path, part: str, kind: str) -> NDArray[Any]:
    """The array of the one file of the folder whose name starts so and holds `idx`."""
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder")
    found = sorted(folder.glob(f"{part}-{kind}*idx*"), key=lambda file: (file.suffix == ".gz", file.name))
    if not found:
        raise UserError(f"{folder}: no file '{part}-{kind}-idx…-ubyte' in it, with or without .gz")
    try:
        return parse(found[0].read_bytes(), str(found[0]))
    except OSError as error:
        raise UserError(f"{found[0]}: cannot be read: {error.strerror}") from None
