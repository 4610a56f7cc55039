"""What lies in a path: the source of data that reads it, and the options that its files suggest."""

import io
import re
import wave
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from PIL import Image

from kdbench.data.audio import NAMED
from kdbench.data.columns import Columns, read_columns
from kdbench.data.files import TEST_FOLDERS, Files, find
from kdbench.data.pixels import SUFFIXES
from kdbench.errors import UserError

TABLES = {".csv", ".tsv", ".jsonl", ".parquet"}
LABELS = ("label", "labels", "class", "target", "sentiment", "category", "y")
"""Names that a column of labels usually has."""

LOOKED_AT = 200
"""Files or rows that are opened for a guess."""

HELD = 0.2
"""Share that is set aside where there is no test split."""

LARGEST_PX, LONGEST_TOKENS, LONGEST_S = 224, 256, 10.0


@dataclass(frozen=True)
class Detected:
    """A source, its options, and in a sentence each what they were taken from."""

    source: str
    options: dict[str, Any]
    facts: tuple[str, ...]


def detect(path: Path) -> Detected:
    """Looks at the names and the beginnings of files; raises UserError where it knows no source for them."""
    if path.is_dir():
        return _folder(path)
    if not path.is_file():
        raise UserError(f"{path}: no such file or folder")
    if path.suffix == ".npz":
        return Detected("arrays", {"path": str(path)}, ())
    if path.suffix == ".zip":
        return _samples(path)
    return _table(path, None)


def _folder(path: Path) -> Detected:
    if any(path.glob("train-images*idx*")):
        return Detected("idx", {"path": str(path)}, ())
    here = sorted(file for file in path.iterdir() if file.is_file() and not file.name.startswith("."))
    arrays = [file for file in here if file.suffix == ".npz"]
    if len(arrays) == 1:
        return Detected("arrays", {"path": str(arrays[0])}, ())
    parts = [_part(here, names) for names in (("train",), (*TEST_FOLDERS[:1], "dev", *TEST_FOLDERS[1:]))]
    if parts[0] is not None and parts[0].suffix.lower() not in {*SUFFIXES, ".wav"}:
        return _table(parts[0], parts[1])
    return _samples(path)


def _part(files: Sequence[Path], names: Sequence[str]) -> Path | None:
    """The first file with one of the words in its name, such as `x-train.csv` or `stsa.binary.test`."""
    for name in names:
        for file in files:
            if name in re.split(r"[^a-z]+", file.name.lower()) and file.suffix.lower() not in (".xml", ".md", ".zip"):
                return file
    return None


# --- images and recordings --------------------------------------------------------------------------------------------


def _samples(path: Path) -> Detected:
    """Images or recordings, of which there are more, below a folder or in a .zip."""
    files = find(path, {*SUFFIXES, ".wav"})
    kinds = Counter(PurePosixPath(name).suffix.lower() == ".wav" for name in files.names)
    recordings = kinds[True] > kinds[False]
    chosen = Files(path, tuple(n for n in files.names if (PurePosixPath(n).suffix.lower() == ".wav") == recordings))
    detected = _recordings(chosen) if recordings else _images(chosen)
    held = _has_test_folder(chosen) or (
        recordings and all(NAMED.fullmatch(PurePosixPath(n).name) for n in chosen.names)
    )
    if held:
        return detected
    samples = max(1, round(HELD * len(chosen.names)))
    said = f"no test folder: {samples} of {len(chosen.names)} files are set aside by class"
    return Detected(detected.source, {**detected.options, "test_samples": samples}, (*detected.facts, said))


def _has_test_folder(files: Files) -> bool:
    folders = {part for name in files.names for part in PurePosixPath(name).parts[:-1]}
    return "train" in folders and bool(folders & set(TEST_FOLDERS))


def _images(files: Files) -> Detected:
    sizes, modes = zip(*_looked_at(files, _image_facts), strict=True)
    median = int(np.median([min(size) for size in sizes]))
    size_px = min(median, LARGEST_PX)
    color = "grey" if set(modes) <= {"1", "L", "LA", "I", "I;16", "I;16B"} else "rgb"
    alike = "all" if len(set(sizes)) == 1 else "of median"
    said = f"images {alike} {median} px at their shorter side, {'grey' if color == 'grey' else 'in colour'}"
    return Detected("folders", {"path": str(files.where), "size_px": size_px, "color": color}, (said,))


def _image_facts(content: bytes) -> tuple[tuple[int, int], str]:
    with Image.open(io.BytesIO(content)) as image:
        return image.size, image.mode


def _recordings(files: Files) -> Detected:
    rates, lengths = zip(*_looked_at(files, _wave_facts), strict=True)
    rate = Counter(rates).most_common(1)[0][0]
    seconds = min(float(np.ceil(10 * np.percentile(lengths, 95)) / 10), LONGEST_S)
    said = f"recordings at {rate} Hz, of which 95 % are no longer than {seconds:g} s"
    return Detected("audio", {"path": str(files.where), "sample_rate": rate, "seconds": seconds}, (said,))


def _wave_facts(content: bytes) -> tuple[int, float]:
    with wave.open(io.BytesIO(content)) as file:
        return file.getframerate(), file.getnframes() / file.getframerate()


def _looked_at(files: Files, facts: Callable[[bytes], tuple[Any, Any]]) -> list[tuple[Any, Any]]:
    """The facts of files from all over the folder; broken ones are left to the source, which names them."""
    step = max(1, len(files.names) // LOOKED_AT)
    names = files.names[::step]
    found = []
    for content in files.contents(names):
        try:
            found.append(facts(content))
        except Exception:  # noqa: S112 — readers raise whatever a broken file makes them meet
            continue
    if not found:
        raise UserError(f"{files.where}: none of the {len(names)} files looked at can be read, such as '{names[0]}'")
    return found


# --- tables and text --------------------------------------------------------------------------------------------------


def _table(train: Path, test: Path | None) -> Detected:
    suffix = train.suffix.lower()
    options: dict[str, Any] = {"train": str(train)} | ({"test": str(test)} if test else {})
    if suffix == ".arff":
        beside = sorted(train.parent.glob("*.xml"))
        labels = [path for path in beside if train.stem.startswith(path.stem)] or beside
        if len(labels) == 1:
            options["labels_file"] = str(labels[0])
        return Detected("tables", options, ("labels as the .xml beside it names them",) if len(labels) == 1 else ())
    if suffix not in TABLES:
        if test is None:
            raise UserError(f"{train}: no source of data known for it: name a folder, an .npz, a .zip or a table")
        return Detected("text", options, ("one sentence a line behind its label",))
    columns = read_columns(train)
    label = next((name for name in columns if name.lower() in LABELS), None)
    if label is None:
        known = ", ".join(list(columns)[:8])
        raise UserError(f"{train}: none of its columns ({known}) is called 'label', 'class' or 'target': rename one")
    words = {name: values[:LOOKED_AT] for name, values in columns.items() if name != label}
    texts = {name: values for name, values in words.items() if not all(map(_is_number, values))}
    if not texts:
        total = len(columns[label])
        held = {} if test else {"test_samples": max(1, round(HELD * total))}
        said = () if test else (f"no test table: {held['test_samples']} of {total} rows are set aside by class",)
        return Detected("tables", {**options, "label": label, **held}, said)
    if test is None:
        raise UserError(f"{train}: text needs a test table too: give a folder with one for 'train' and one for 'test'")
    text = max(texts, key=lambda name: sum(map(len, texts[name])))
    return Detected("text", {**options, "text": text, "label": label, "length": _length(columns, text)}, ())


def _is_number(value: str) -> bool:
    try:
        float(value)
    except ValueError:
        return value.strip() == ""
    return True


def _length(columns: Columns, text: str) -> int:
    """Tokens that 95 % of the texts have at most, with room for what a tokenizer splits, as a multiple of 8."""
    words = np.percentile([len(value.split()) for value in columns[text]], 95)
    return int(min(LONGEST_TOKENS, max(8, 8 * np.ceil(1.25 * words / 8))))
