"""Zip archives that go from machine to machine: equal contents as equal bytes, and read as if a stranger had made them.

Members are stored uncompressed: weights hardly shrink, and so no version of a compressor changes the bytes. Archives of
arrays, numpy's `.npz`, are compressed.
"""

import hashlib
import io
import os
import shutil
import stat
import struct
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from kdbench.errors import UserError, first_line

MOST_READ_BYTES = 2**30
"""Of a member that is read into memory."""

MOST_TIMES = 100
"""How many times larger than an archive what is unpacked of it may be."""
MOST_OF_MEMORY = 0.5
"""The share of this machine's that arrays of one file may take."""

CHUNK_BYTES = 2**20

DAMAGED = (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError, ValueError, struct.error)
"""What Python's zipfile raises where an archive is cut off, edited or made to harm."""


def write(file: IO[bytes], members: Mapping[str, bytes | Path]) -> None:
    """Writes an archive of contents and of files, in this order."""
    with zipfile.ZipFile(file, "w") as archive:
        for name, content in members.items():
            info = zipfile.ZipInfo(name, date_time=(1980, 1, 1, 0, 0, 0))
            info.create_system, info.external_attr = 3, (stat.S_IFREG | 0o644) << 16
            info.file_size = len(content) if isinstance(content, bytes) else content.stat().st_size
            with archive.open(info, "w") as target:
                if isinstance(content, bytes):
                    target.write(content)
                else:
                    with content.open("rb") as source:
                        shutil.copyfileobj(source, target, CHUNK_BYTES)


def read(path: Path, name: str, most: int = MOST_READ_BYTES) -> bytes | None:
    """The content of one member of at most so many bytes, None where there is no such.

    Raises UserError for a larger one, and for an archive that is not sound.
    """
    with _opened(path) as (archive, members):
        info = members.get(name)
        if info is None:
            return None
        if info.file_size > most:
            raise UserError(f"{path}: its '{name}' would be {info.file_size} bytes: not made by kdbench")
        with archive.open(info) as source:
            return source.read()


def unpack(path: Path, files: Mapping[str, tuple[str, int]], folder: Path) -> None:
    """Writes `files`, each with its sha256 and size in bytes, into `folder`, which is empty.

    Raises UserError for an archive that lacks one of them or holds it otherwise, and where `folder` has no room.
    """
    for name in files:
        _check_name(path, name)
    needed, free = sum(size for _, size in files.values()), shutil.disk_usage(folder).free
    if needed > free:
        raise UserError(f"{folder}: {needed} bytes are needed to unpack {path}, {free} are free: set TMPDIR elsewhere")
    with _opened(path) as (archive, members):
        packed = path.stat().st_size
        if needed > MOST_TIMES * packed:
            raise UserError(f"{path}: would be {needed} bytes, {needed // packed} times its size: not made by kdbench")
        for name, (sha256, size_bytes) in files.items():
            if name not in members:
                raise UserError(f"{path}: its '{name}' is missing: copy or make it again")
            target = folder / name
            try:
                target.parent.mkdir(parents=True, exist_ok=True)
                with archive.open(members[name]) as source, target.open("xb") as file:
                    found = _copy(source, file, size_bytes)
            except OSError as error:
                raise UserError(
                    f"{folder}: '{name}' cannot be unpacked: {error.strerror}: set TMPDIR elsewhere"
                ) from None
            if found != sha256:
                raise UserError(
                    f"{path}: '{name}' is not the file that was packed (sha256 {found[:16]}… instead of "
                    f"{sha256[:16]}…): copy or make it again"
                )


def _copy(source: IO[bytes], target: IO[bytes], most: int) -> str:
    """Copies `most` bytes and one more, which a larger member would have; the sha256 of what was copied."""
    digest, left = hashlib.sha256(), most + 1
    while left and (chunk := source.read(min(left, CHUNK_BYTES))):
        target.write(chunk)
        digest.update(chunk)
        left -= len(chunk)
    return digest.hexdigest()


@contextmanager
def _opened(path: Path) -> Iterator[tuple[zipfile.ZipFile, dict[str, zipfile.ZipInfo]]]:
    """The archive and its members by name, all of them harmless."""
    try:
        with zipfile.ZipFile(path) as archive:
            yield archive, _members(path, archive)
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from None
    except DAMAGED as error:
        raise UserError(f"{path}: not a sound archive, or cut off ({first_line(error, 80)}): copy it again") from None


def _members(path: Path, archive: zipfile.ZipFile) -> dict[str, zipfile.ZipInfo]:
    members: dict[str, zipfile.ZipInfo] = {}
    for info in archive.infolist():
        _check_name(path, info.filename)
        kind = stat.S_IFMT(info.external_attr >> 16)
        if kind not in (0, stat.S_IFREG) or info.is_dir():
            raise UserError(f"{path}: its '{info.filename}' is a link or a folder: not made by kdbench")
        if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise UserError(f"{path}: its '{info.filename}' is compressed in a rare way: not made by kdbench")
        if info.filename in members:
            raise UserError(f"{path}: holds '{info.filename}' twice: not made by kdbench")
        members[info.filename] = info
    return members


def _check_name(path: Path, name: str) -> None:
    """Raises UserError for a name that leads, or on some system would lead, out of the folder, or is no file's."""
    parts = PurePosixPath(name).parts
    strange = any(sign in '\\:*?"<>|' or not sign.isprintable() for sign in name)
    if not parts or name.startswith("/") or ".." in parts or strange:
        raise UserError(f"{path}: its '{name}' leads outside its folder: not made by kdbench")


def npz_bytes(arrays: Mapping[str, NDArray[Any]]) -> bytes:
    """Arrays as a compressed archive, equal ones as equal bytes."""
    buffer = io.BytesIO()
    named: dict[str, Any] = dict(arrays)
    np.savez_compressed(buffer, **named)
    return buffer.getvalue()


def arrays_of(file: IO[bytes], where: str) -> dict[str, NDArray[Any]]:
    """All arrays of an `.npz`; raises UserError naming `where` for one that is damaged, holds pickled objects, or is
    too large for this machine's memory."""
    most = int(MOST_OF_MEMORY * os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    with _npz(file, where) as found:
        members: list[zipfile.ZipInfo] = found.zip.infolist() if found.zip else []
        needed = sum(info.file_size for info in members)
        if needed > most:
            raise UserError(f"{where}: its arrays would take {needed} bytes, this machine has room for {most}")
        return {name: found[name] for name in found.files}


def array_names(file: IO[bytes], where: str) -> list[str]:
    """Of all arrays of an `.npz`, of which none is read; raises UserError as `arrays_of`."""
    with _npz(file, where) as found:
        return list(found.files)


@contextmanager
def _npz(file: IO[bytes], where: str) -> Iterator["np.lib.npyio.NpzFile"]:
    try:
        found = np.load(file, allow_pickle=False)
        if not isinstance(found, np.lib.npyio.NpzFile):
            raise UserError(f"{where}: a single array, not an .npz archive: save it with numpy.savez")
        yield found
    except MemoryError:
        raise UserError(f"{where}: not a readable .npz archive: its arrays claim more memory than there is") from None
    except (OSError, KeyError, *DAMAGED) as error:
        why = "not one, cut off, or with pickled objects" if "pickle" in str(error) else first_line(error, 100)
        raise UserError(f"{where}: not a readable .npz archive ({why})") from None
