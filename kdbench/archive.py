"""Zip archives that go from machine to machine: equal contents as equal bytes, and read as if a stranger had made them.

Members are stored uncompressed: weights hardly shrink, and so no version of a compressor changes the bytes.
"""

import hashlib
import shutil
import stat
import struct
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import IO

from kdbench.errors import UserError, first_line

MOST_READ_BYTES = 2**30
"""Of a member that is read into memory."""

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


def read(path: Path, name: str) -> bytes | None:
    """The content of one member, None where there is no such; raises UserError for an archive that is not sound."""
    with _opened(path) as (archive, members):
        info = members.get(name)
        if info is None:
            return None
        if info.file_size > MOST_READ_BYTES:
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
    """Raises UserError for a name that leads, or on some system would lead, out of the folder."""
    parts = PurePosixPath(name).parts
    if not parts or name.startswith("/") or ".." in parts or any(sign in name for sign in "\\:\0"):
        raise UserError(f"{path}: its '{name}' leads outside its folder: not made by kdbench")
