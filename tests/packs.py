"""Packed runs that were changed on their way."""

import json
import zipfile
from pathlib import Path

from kdbench import archive
from kdbench.pipeline.packing import MANIFEST
from kdbench.store import sha256


def rewritten(source: Path, target: Path, changed: dict[str, bytes | None]) -> Path:
    """The archive with other members; None leaves one out."""
    with zipfile.ZipFile(source) as found:
        members = {info.filename: found.read(info) for info in found.infolist()} | changed
    with zipfile.ZipFile(target, "w") as made:
        for name, content in members.items():
            if content is not None:
                made.writestr(name, content)
    return target


def manifest(source: Path) -> dict:
    return json.loads(archive.read(source, MANIFEST))


def with_files(source: Path, target: Path, files: dict[str, bytes], **changes: object) -> Path:
    """The packed run with other files, of which its manifest tells what they are, and with `changes` of that."""
    record = manifest(source)
    described = {file["name"]: file for file in record["files"]}
    for name, content in files.items():
        described[name] = {"name": name, "sha256": sha256(content), "size_bytes": len(content)}
    text = json.dumps({**record, "files": list(described.values()), **changes})
    return rewritten(source, target, {MANIFEST: text.encode(), **files})
