"""Run folders, and the records beside ONNX files."""

import fcntl
import json
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from pydantic import Field, TypeAdapter

from kdbench.errors import UserError
from kdbench.records import Artifact
from kdbench.records.base import from_json, read_text
from kdbench.store.writing import prepare_folder, write_atomic

SIDECAR = ".artifact.json"

_SECONDS = TypeAdapter(dict[str, dict[str, Annotated[float, Field(ge=0, allow_inf_nan=False)]]])


@dataclass(frozen=True)
class RunFolder:
    """One folder a run: the evaluation pack, and for each rung its ONNX file, artifact record and weights."""

    path: Path

    @property
    def pack(self) -> Path:
        return self.path / "pack.npz"

    def onnx(self, rung: str) -> Path:
        return self.path / f"{rung}.onnx"

    def weights(self, rung: str) -> Path:
        return self.path / f"{rung}.safetensors"

    def weights_of_epoch(self, rung: str, epoch: str) -> Path:
        """Where the weights of the epoch lie that does not go on along the ladder: the `last` or the `best`."""
        return self.path / f"{rung}-{epoch}.safetensors"

    def metrics(self, rung: str) -> Path:
        """A JSON object an epoch, one a line."""
        return self.path / f"{rung}.metrics.jsonl"

    def tensorboard(self, rung: str) -> Path:
        """The folder of its curves, where TensorBoard is installed."""
        return self.path / "tensorboard" / rung

    def checkpoint(self, rung: str) -> Path:
        return self.path / f"{rung}.checkpoint.safetensors"

    @property
    def durations(self) -> Path:
        """What making each file took: no part of its record, which is the same for equal seeds."""
        return self.path / "durations.json"

    def duration_s(self, rung: str) -> float | None:
        """What all parts of making a rung's files took together; None where that isn't known."""
        parts = self._durations().get(rung)
        return sum(parts.values()) if parts else None

    def note_duration(self, rung: str, part: str, duration_s: float | None) -> None:
        """Keeps what a part of making a rung took, in the place of what it took before; None where it took no part."""
        known = self._durations()
        parts = {name: value for name, value in known.pop(rung, {}).items() if name != part}
        if duration_s is not None:
            parts[part] = round(duration_s, 3)
        write_atomic(self.durations, json.dumps(known | {rung: parts}, indent=1, sort_keys=True) + "\n")

    @contextmanager
    def timed(self, rung: str, part: str) -> Iterator[None]:
        """Keeps what a part of making a rung takes, where it does not fail."""
        begun = time.perf_counter()
        yield
        self.note_duration(rung, part, time.perf_counter() - begun)

    def _durations(self) -> dict[str, dict[str, float]]:
        """In seconds by rung and part; none where the file is missing or damaged."""
        try:
            return _SECONDS.validate_json(self.durations.read_bytes())
        except (OSError, ValueError):
            return {}

    def cache(self, teacher: str, seed: int) -> Path:
        """The folder of a teacher's answers to the training set, as the views of a seed show it."""
        return self.path / f"{teacher}.logits-{seed}"

    def artifacts(self) -> dict[str, Artifact]:
        """Every rung's record; raises UserError where there is none."""
        found = [load_artifact(path) for path in sorted(self.path.glob(f"*{SIDECAR}"))]
        if not found:
            raise UserError(f"{self.path}: not a run folder: no *{SIDECAR} in it")
        return {artifact.rung: artifact for artifact in found}

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Refuses a second run in the same folder, and clears what a killed one left half-written.

        A folder that is made here, and in which nothing comes to lie, is removed again.
        """
        made = not self.path.exists()
        prepare_folder(self.path)
        with (self.path / ".lock").open("w") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                raise UserError(f"{self.path}: another kdbench is at work there: wait, or choose --out") from None
            for part in (*self.path.glob(".kdbench-*.part"), *self.path.glob("*/.kdbench-*.part")):
                if not Path("/proc", part.name.split(".")[-2]).exists():
                    shutil.rmtree(part) if part.is_dir() else part.unlink(missing_ok=True)
            try:
                yield
            finally:
                if made and [path.name for path in self.path.iterdir()] == [".lock"]:
                    shutil.rmtree(self.path)


def sidecar(model: Path) -> Path:
    """Where the record of an ONNX file lies: `student.onnx` → `student.artifact.json`."""
    return model.with_name(model.stem + SIDECAR)


def load_artifact(path: Path) -> Artifact:
    artifact = from_json(Artifact, read_text(path), str(path))
    if Path(artifact.file).name != artifact.file:
        raise UserError(f"{path}: 'file' should be a plain name beside it, not '{artifact.file}'")
    return artifact


def save_artifact(folder: Path, artifact: Artifact) -> Artifact:
    write_atomic(sidecar(folder / artifact.file), artifact.to_json())
    return artifact
