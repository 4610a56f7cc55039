"""Files of samples in a folder or a .zip, and their order in class folders."""

import zipfile
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np
from numpy.typing import NDArray

from kdbench.data.dataset import Labels, class_labels, set_aside
from kdbench.errors import UserError, first_line

TEST_FOLDERS = ("test", "val", "valid", "validation")


@dataclass(frozen=True)
class Files:
    """The files of the wanted kinds in a folder or a .zip, by relative name in sorted order."""

    where: Path
    names: tuple[str, ...]

    def contents(self, names: Sequence[str]) -> Iterator[bytes]:
        """The bytes of each file in turn; raises UserError that names one which cannot be read."""
        if self.where.is_dir():
            for name in names:
                try:
                    yield (self.where / name).read_bytes()
                except OSError as error:
                    raise UserError(f"{self.where / name}: cannot be read: {error.strerror}") from None
            return
        with zipfile.ZipFile(self.where) as archive:
            for name in names:
                try:
                    content = archive.read(name)
                except Exception as error:  # zipfile raises whatever a damaged member makes it meet
                    raise UserError(f"{self.where}: '{name}' cannot be read: {first_line(error)}") from None
                yield content


@dataclass(frozen=True)
class Split:
    """Names of training and test files, their labels, and the classes."""

    train: tuple[str, ...]
    test: tuple[str, ...]
    y_train: Labels
    y_test: Labels
    classes: tuple[str, ...]


def find(where: Path, suffixes: Collection[str]) -> Files:
    """All files below a folder or in a .zip whose suffix is one of `suffixes`, hidden ones left out."""
    if where.is_dir():
        found = [path.relative_to(where).as_posix() for path in where.rglob("*") if path.is_file()]
    elif where.is_file():
        try:
            with zipfile.ZipFile(where) as archive:
                found = [info.filename for info in archive.infolist() if not info.is_dir()]
        except Exception as error:  # a damaged directory is no better than a damaged member
            raise UserError(f"{where}: not a folder and not a readable .zip: {first_line(error)}") from None
    else:
        raise UserError(f"{where}: no such file or folder")
    paths = [PurePosixPath(name) for name in found]
    shown = [path for path in paths if not any(part.startswith((".", "__MACOSX")) for part in path.parts)]
    names = sorted(str(path) for path in shown if path.suffix.lower() in suffixes)
    if not names:
        raise UserError(f"{where}: no file that ends in {', '.join(sorted(suffixes))} in it")
    return Files(where, tuple(names))


def by_class(files: Files, test_samples: int | None, classes: Sequence[str]) -> Split:
    """Files in `train/<class>/` and `test/<class>/`, or in `<class>/` alone, of which `test_samples` are set aside.

    Folders around these are passed over. Raises UserError where a file lies in no class folder.
    """
    depth = _common_folders(files.names)
    parts = {name: PurePosixPath(name).parts[depth:] for name in files.names}
    tops = {path[0] for path in parts.values()}
    test_folder = next((folder for folder in TEST_FOLDERS if folder in tops), None)
    if "train" not in tops or test_folder is None:
        labels = [_class_of(files, name, parts[name]) for name in files.names]
        return by_label(files, files.names, labels, None, test_samples, classes)
    used = [name for name in files.names if parts[name][0] in ("train", test_folder)]
    labels = [_class_of(files, name, parts[name][1:]) for name in used]
    held = np.array([parts[name][0] == test_folder for name in used])
    return by_label(files, used, labels, held, test_samples, classes)


def by_label(
    files: Files,
    names: Sequence[str],
    labels: Sequence[str],
    held: NDArray[np.bool_] | None,
    test_samples: int | None,
    classes: Sequence[str],
) -> Split:
    """The split of labelled files, where `held` tells those of the test split; else `test_samples` are set aside."""
    if held is None:
        _, y, _ = class_labels(labels, None, (), str(files.where))
        train, test = set_aside(y, len(names), test_samples)
    else:
        train, test = np.flatnonzero(~held), np.flatnonzero(held)
        for part, index in (("training", train), ("test", test)):
            if not len(index):
                raise UserError(f"{files.where}: no {part} samples in it")
    known, y_train, y_test = class_labels(
        [labels[i] for i in train], [labels[i] for i in test], classes, str(files.where)
    )
    assert y_train is not None
    assert y_test is not None
    return Split(tuple(names[i] for i in train), tuple(names[i] for i in test), y_train, y_test, known)


def _class_of(files: Files, name: str, path: tuple[str, ...]) -> str:
    if len(path) < 2:
        raise UserError(f"{files.where}: '{name}' lies in no class folder: expected train/<class>/ and test/<class>/")
    return path[0]


def _common_folders(names: Sequence[str]) -> int:
    """How many folders all files lie in together, their class folders left out."""
    folders = [PurePosixPath(name).parts[:-1] for name in names]
    depth = 0
    while all(len(folder) > depth + 1 for folder in folders) and len({folder[depth] for folder in folders}) == 1:
        depth += 1
    return depth
