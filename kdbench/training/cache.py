"""Logits of a teacher, answered once for each sample and view, and read back memory-mapped in half precision."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kdbench.errors import UserError
from kdbench.progress import Progress, silent, unsaid
from kdbench.records import Augment, Versioned, from_json, read_text
from kdbench.store import part_of, prepare_folder, sha256_of_file, write_atomic

BATCH = 256
"""Samples that a teacher answers at a time: always the same, so that equal caches have equal bytes."""

META = "cache.json"

Answer = Callable[[NDArray[np.int64]], NDArray[Any]]
"""From places in the training set [n] to logits [n, K] of one view of these samples."""


class Meta(Versioned):
    fingerprint: str
    """Of teacher, data, augmentation, seed and preprocessing."""
    views: dict[int, str]
    """sha256 of each view's file."""


def views_of(augment: Augment) -> int | None:
    """Number of different views of a sample that a training shows; None where every epoch has a new one."""
    varied = augment.model_copy(update={"views": 0}) != Augment()
    return (augment.views or None) if varied else 1


class Cache:
    """One teacher's logits in a folder, a `.npy` file [N, K] of float16 a view."""

    def __init__(self, folder: Path, fingerprint: str, samples: int, say: Callable[[str], None] = unsaid) -> None:
        """Opens the folder; what lies there of another `fingerprint`, or is damaged, is removed, and `say` told."""
        self.folder, self.samples, self.say = prepare_folder(folder), samples, say
        self.meta = Meta(fingerprint=fingerprint, views={})
        self.sound: set[int] = set()
        """Views that were found sound, or written, by this object."""
        if not (folder / META).is_file():
            return
        found = self._found()
        if found is not None:
            self.meta = found
        else:
            say(f"{folder}: logits of another teacher, data or augmentation, or damaged: answered again")
            for path in folder.glob("view-*.npy"):
                path.unlink()
            (folder / META).unlink()

    def view(self, number: int, answer: Answer, progress: Progress = silent) -> NDArray[np.float16]:
        """The logits [N, K] of a view, mapped into memory; answered now if they are not there or not sound."""
        path = self.folder / f"view-{number}.npy"
        if number not in self.sound:
            if number not in self.meta.views:
                self.meta = self._found() or self.meta  # another process may have answered it meanwhile
            known = self.meta.views.get(number)
            if known is not None and not (path.is_file() and sha256_of_file(path) == known):
                self.say(f"{path}: damaged or missing: answered again")
                known = None
            if known is None:
                self._fill(path, number, answer, progress)
            self.sound.add(number)
        # Opened anew each time: what an earlier mapping has read of the file is given back with it.
        view: NDArray[np.float16] = np.load(path, mmap_mode="r", allow_pickle=False)
        return view

    def _found(self) -> Meta | None:
        """What the folder says of its views, where that is sound and of the same fingerprint."""
        if not (self.folder / META).is_file():
            return None
        try:
            found = from_json(Meta, read_text(self.folder / META), str(self.folder / META))
        except UserError:
            return None
        return found if found.fingerprint == self.meta.fingerprint else None

    def _fill(self, path: Path, number: int, answer: Answer, progress: Progress) -> None:
        """Writes a view beside its place, and puts it there when it is whole."""
        part = part_of(path)
        label = f"teacher's answers, view {number + 1}"
        try:
            rows: np.memmap[Any, Any] | None = None
            for index in _batches(self.samples):
                progress(label, int(index[0]), self.samples)
                logits = answer(index)
                wrong = np.flatnonzero(np.isnan(logits).any(axis=1))
                if len(wrong):
                    raise UserError(
                        f"{self.folder.name}: the teacher answers NaN for training sample {index[wrong[0]]}: mend it, "
                        "or leave the sample out"
                    )
                if rows is None:
                    shape = (self.samples, logits.shape[1])
                    rows = np.lib.format.open_memmap(part, mode="w+", dtype=np.float16, shape=shape)
                rows[index] = in_half(logits)
            progress(label, self.samples, self.samples)
            if rows is not None:
                rows.flush()
                del rows
            part.replace(path)
        finally:
            part.unlink(missing_ok=True)
        self.meta = self.meta.model_copy(update={"views": {**self.meta.views, number: sha256_of_file(path)}})
        write_atomic(self.folder / META, self.meta.to_json())


def in_half(logits: NDArray[Any]) -> NDArray[np.float16]:
    """Logits in half precision, those beyond its range at its end: an infinite logit would make a loss NaN."""
    largest = float(np.finfo(np.float16).max)
    half: NDArray[np.float16] = np.clip(logits, -largest, largest).astype(np.float16)
    return half


def _batches(samples: int) -> Iterator[NDArray[np.int64]]:
    for start in range(0, samples, BATCH):
        yield np.arange(start, min(start + BATCH, samples))
