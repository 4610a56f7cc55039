"""Writing whole files and folders or nothing, and reading arrays back."""

import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from numpy.typing import NDArray

from kdbench import archive
from kdbench.errors import UserError, first_line

Arrays = dict[str, NDArray[Any]]
Paths = str | Path | Iterable[str | Path]


def paths_of(*given: Paths) -> list[Path]:
    """Paths that were given one by one, several at once, or both."""
    return [Path(path) for some in given for path in ([some] if isinstance(some, str | Path) else some)]


def prepare_folder(path: Path) -> Path:
    """Makes `path` a folder that can be written to; raises UserError where it can't be."""
    try:
        path.mkdir(parents=True, exist_ok=True)
        probe = part_of(path / "probe")
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise UserError(f"{path}: cannot be written to ({error.strerror}): choose another --out") from None
    return path


def part_of(path: Path, kind: str = "") -> Path:
    """Where a file is made before it gets its name: beside it, and cleared by the next run if its maker was killed."""
    return path.with_name(f".kdbench-{path.name}{kind}.{os.getpid()}.part")


def whole_name(path: Path) -> Path:
    """Where a file that is being made will lie when it is done, for messages; any other path as it is."""
    found = re.fullmatch(r"\.kdbench-(.+?)(?:-unproven|-emulated)?\.\d+\.part", path.name)
    return path.with_name(found[1]) if found else path


def write_atomic(path: Path, content: bytes | str) -> None:
    """Writes a whole file or nothing: a reader never sees a part of it, also after a kill or a power cut."""
    with _atomic(path) as file:
        file.write(content.encode() if isinstance(content, str) else content)


def write_archive(path: Path, members: Mapping[str, bytes | Path]) -> None:
    """Writes contents and files as one zip archive, whole or not at all; equal ones as equal bytes."""
    with _atomic(path) as file:
        archive.write(file, members)


@contextmanager
def _atomic(path: Path) -> Iterator[IO[bytes]]:
    part = part_of(path)
    try:
        with part.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    except OSError as error:
        raise UserError(f"{path}: cannot be written: {error.strerror}") from None
    finally:
        with suppress(OSError):
            part.unlink()


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """A folder to be filled, which gets its name when that is done, and is gone where it fails.

    Raises UserError where `path` holds something already, or can't be written.
    """
    path = path.resolve()
    if path.exists() and not (path.is_dir() and not any(path.iterdir())):
        raise UserError(f"{path}: exists already: choose another --out, or remove it")
    part = part_of(prepare_folder(path.parent) / path.name)
    try:
        part.mkdir()
        yield part
        part.replace(path)
    except OSError as error:
        raise UserError(f"{path}: cannot be written: {error.strerror}") from None
    finally:
        shutil.rmtree(part, ignore_errors=True)


def output_file(out: str | Path, *sources: Path, option: str = "--out") -> Path:
    """`out`, which `option` named, as a file that can be written; raises UserError where it can't, or is one of the
    `sources`."""
    out = Path(out)
    if out.is_dir():
        raise UserError(f"{out}: a folder: give {option} a file name")
    if (out.exists() and not out.is_file()) or out.parent.resolve() == Path("/dev"):
        raise UserError(f"{out}: a device or a pipe, which a file would replace: give {option} a file name")
    if any(out.resolve() == source.resolve() for source in sources):
        raise UserError(f"{out}: is the input itself: choose another {option}")
    prepare_folder(out.parent)
    return out


def write_npz(path: Path, arrays: Mapping[str, NDArray[Any]]) -> bytes:
    """Writes arrays compressed, equal arrays as equal bytes; returns the bytes."""
    content = archive.npz_bytes(arrays)
    write_atomic(path, content)
    return content


def read_npz(path: Path) -> Arrays:
    """All arrays of the file; raises UserError where it is missing, damaged or holds pickled objects."""
    with _opened(path) as file:
        return archive.arrays_of(file, str(path))


def npz_names(path: Path) -> list[str]:
    """Of all arrays of the file, of which none is read; raises UserError where it is missing or damaged."""
    with _opened(path) as file:
        return archive.array_names(file, str(path))


@contextmanager
def _opened(path: Path) -> Iterator[IO[bytes]]:
    """The file of an `.npz`, which numpy itself would leave open where it is damaged."""
    try:
        with path.open("rb") as file:
            yield file
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except OSError as error:
        raise UserError(f"{path}: not a readable .npz archive ({first_line(error, 100)})") from None


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def sha256_of_file(path: Path) -> str:
    """Without reading the file into memory at once."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def fingerprint(**facts: Any) -> str:
    """A hash of plain data, the same for equal data."""
    return sha256(json.dumps(facts, sort_keys=True, default=str).encode())
