"""Images in class folders: `train/<class>/*.png` and `test/<class>/*.png`, or one such folder, or a .zip of either."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from kdbench.data.dataset import Dataset, Labels
from kdbench.data.files import Files, by_class, find
from kdbench.data.pixels import SUFFIXES, Color, decode
from kdbench.data.preprocess import fit
from kdbench.errors import UserError
from kdbench.records import Count


def load(
    path: Path,
    size_px: Annotated[int, Field(ge=1, le=4096)],
    color: Color = "rgb",
    test_samples: Count | None = None,
    skip_broken: bool = False,
    classes: tuple[str, ...] = (),
) -> Dataset:
    """Images as uint8 [N, 3 or 1, size_px, size_px]; the shorter side is scaled to `size_px`, the longer one cropped.

    Without a test folder (`test`, `val`, `valid` or `validation`), `test_samples` are set aside by class. A broken
    image is named in a UserError, or in the remarks with `skip_broken`.
    """
    files = find(path, SUFFIXES)
    split = by_class(files, test_samples, classes)
    skipped: list[str] = []
    parts = [
        _images(files, names, labels, size_px, color, skipped if skip_broken else None)
        for names, labels in ((split.train, split.y_train), (split.test, split.y_test))
    ]
    (x_train, y_train), (x_test, y_test) = parts
    return Dataset(
        x_train=x_train,
        y_train=y_train,
        x_test=x_test,
        y_test=y_test,
        classes=split.classes,
        preprocessing=fit(x_train, scale=1 / 255),
        remarks=(f"broken images skipped: {len(skipped)}, such as {skipped[0]}",) if skipped else (),
    )


def _images(
    files: Files, names: Sequence[str], labels: Labels, size_px: int, color: Color, skipped: list[str] | None
) -> tuple[NDArray[np.uint8], Labels]:
    """Pixels and labels of the images that can be read; names of the others go to `skipped`, where there is one."""
    images = np.empty((len(names), 3 if color == "rgb" else 1, size_px, size_px), dtype=np.uint8)
    kept: list[int] = []
    for number, (name, content) in enumerate(zip(names, files.contents(names), strict=True)):
        try:
            images[len(kept)] = decode(content, size_px, color, f"{files.where}: '{name}'")
        except UserError:
            if skipped is None:
                raise
            skipped.append(name)
        else:
            kept.append(number)
    if not kept:
        raise UserError(f"{files.where}: none of its images can be read")
    return images[: len(kept)], labels[kept]
