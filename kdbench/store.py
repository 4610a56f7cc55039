"""The only owner of paths: the zoo, results and run folders. Every write is atomic."""

import fcntl
import hashlib
import io
import json
import os
import re
import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Annotated, Any, TypeVar

from numpy.typing import NDArray
from pydantic import Field, TypeAdapter

from kdbench import archive
from kdbench.errors import UserError, first_line, nearest
from kdbench.records import Artifact, Comparison, RawFile, Recipe, ResultFile, recipe_from_toml
from kdbench.records.base import from_json, placeless, read_text

Arrays = dict[str, NDArray[Any]]
Raw = TypeVar("Raw", ResultFile, Comparison)
"""Records whose raw arrays lie beside them."""

RESULTS = Path("results")
"""Published measurements: `results/<machine>/<date>-<recipe>.json`, seen from the working directory."""

SIDECAR = ".artifact.json"

RESULTS_FILE = "results.json"
PARTIAL_FILE = "results.partial.json"
"""Of a measurement under way or interrupted: a complete one is never replaced by it."""
COMPARISON_FILE = "comparison.json"
RETURNED = ".results.zip"
"""How the name of a result file ends that holds record and raw arrays in one, to be brought back from a machine."""


# --- writing ----------------------------------------------------------------------------------------------------------


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
    found = re.fullmatch(r"\.kdbench-(.+?)(?:-unproven)?\.\d+\.part", path.name)
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
        part.unlink(missing_ok=True)


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


def output_file(out: str | Path, *sources: Path) -> Path:
    """`out` as a file that can be written; raises UserError where it can't, or is one of the `sources`."""
    out = Path(out)
    if out.is_dir():
        raise UserError(f"{out}: a folder: give --out a file name")
    if any(out.resolve() == source.resolve() for source in sources):
        raise UserError(f"{out}: is the input itself: choose another --out")
    prepare_folder(out.parent)
    return out


def write_npz(path: Path, arrays: Mapping[str, NDArray[Any]]) -> bytes:
    """Writes arrays compressed, equal arrays as equal bytes; returns the bytes."""
    content = archive.npz_bytes(arrays)
    write_atomic(path, content)
    return content


def read_npz(path: Path) -> Arrays:
    """All arrays of the file; raises UserError where it is missing, damaged or holds pickled objects."""
    try:
        with path.open("rb") as file:  # numpy itself leaves a damaged file open
            return archive.arrays_of(file, str(path))
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


# --- recipes ----------------------------------------------------------------------------------------------------------


def zoo_folder() -> Path:
    """The recipes that come along: inside the installed package, or beside it in a checkout."""
    package = Path(__file__).resolve().parent
    inside = package / "zoo"
    return inside if inside.is_dir() else package.parent / "zoo"


def zoo_recipes() -> dict[str, Path]:
    return {path.parent.name: path for path in sorted(zoo_folder().glob("*/recipe.toml"))}


def load_recipe(name_or_path: str, overrides: Mapping[str, str] | None = None) -> Recipe:
    """A recipe of the zoo by name, or the one in a TOML file."""
    path = Path(name_or_path)
    if path.suffix != ".toml" and not path.is_file():
        zoo = zoo_recipes()
        if name_or_path not in zoo:
            raise UserError(f"unknown recipe '{name_or_path}': {nearest(name_or_path, zoo)}; or give a path to a .toml")
        path = zoo[name_or_path]
    return recipe_from_toml(read_text(path), str(path), overrides).placed(path.parent)


# --- run folders ------------------------------------------------------------------------------------------------------

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
        """Refuses a second run in the same folder, and clears what a killed one left half-written."""
        prepare_folder(self.path)
        with (self.path / ".lock").open("w") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                raise UserError(f"{self.path}: another kdbench is at work there: wait, or choose --out") from None
            for part in (*self.path.glob(".kdbench-*.part"), *self.path.glob("*/.kdbench-*.part")):
                if not Path("/proc", part.name.split(".")[-2]).exists():
                    shutil.rmtree(part) if part.is_dir() else part.unlink(missing_ok=True)
            yield


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


# --- results ----------------------------------------------------------------------------------------------------------


def save_results(path: Path, result: Raw, arrays: Arrays) -> Raw:
    """Writes the raw arrays under a name that holds their hash, then the JSON that names it: the pair always fits."""
    content = archive.npz_bytes(arrays)
    digest = sha256(content)
    raw = path.with_name(f"{path.stem}.{digest[:8]}.npz")
    earlier = raw.exists()
    write_atomic(raw, content)
    result = result.model_copy(update={"raw": RawFile(file=raw.name, sha256=digest)})
    try:
        write_atomic(path, result.to_json())
    except UserError:
        if not earlier:  # what no record names would stay for good
            raw.unlink()
        raise
    for old in path.parent.glob(f"{path.stem}.????????.npz"):
        if old != raw:
            old.unlink()
    return result


def remove_results(path: Path) -> None:
    """Removes a result file and its raw arrays."""
    path.unlink(missing_ok=True)
    for raw in path.parent.glob(f"{path.stem}.????????.npz"):
        raw.unlink()


def save_returned(results: Path, out: Path) -> Path:
    """Writes a result file and its raw arrays as one file `out`, which is read like the two; without absolute paths."""
    result, _ = load_result(results)
    raw, text = result.raw.file, placeless(ResultFile, result).to_json()
    write_archive(out, {RESULTS_FILE: text.encode(), raw: results.with_name(raw)})
    return out


def load_result(path: Path) -> tuple[ResultFile, Arrays]:
    """A result file and its raw arrays; raises UserError where either was cut off, edited or is missing."""
    if path.suffix == ".zip":
        text = archive.read(path, RESULTS_FILE)
        if text is None:
            raise UserError(f"{path}: no {RESULTS_FILE} in it: not what 'kdbench bench' says to bring back")
        result = from_json(ResultFile, text.decode(errors="replace"), str(path))
    else:
        result = from_json(ResultFile, read_text(path), str(path))
    arrays = _raw_arrays(path, result.raw)
    rungs = {artifact.rung for artifact in result.artifacts}
    named = [(m.rung, m.raw, f"latencies.{m.raw}") for m in result.measurements]
    named += [(e.rung, e.raw, f"predictions.{e.raw}") for e in result.evaluations]
    named += [(s.rung, s.raw, f"scenarios.{s.raw}") for s in result.scenarios]
    for rung, number, array in named:
        if rung not in rungs or (number is not None and array not in arrays):
            raise UserError(f"{path}: a cell of '{rung}' has no artifact or no raw values: was it edited?")
    return result, arrays


def load_comparison(path: Path) -> tuple[Comparison, Arrays]:
    """A comparison and its raw arrays; raises UserError where either was cut off, edited or is missing."""
    comparison = from_json(Comparison, read_text(path), str(path))
    arrays = _raw_arrays(path, comparison.raw)
    for trial in comparison.trials:
        if f"predictions.{trial.raw}" not in arrays:
            raise UserError(f"{path}: seed {trial.seed} of '{trial.method}' has no raw values: was it edited?")
    return comparison, arrays


def _raw_arrays(path: Path, named: RawFile) -> Arrays:
    """The arrays beside the record at `path`, or in one file with it."""
    content, raw = _raw_content(path, named), path.with_name(Path(named.file).name)
    arrays = archive.arrays_of(io.BytesIO(content), str(raw))
    if sha256(content) != named.sha256:
        raise UserError(f"{raw}: not the file that {path.name} was written with (sha256 differs): restore both")
    return arrays


def _raw_content(path: Path, named: RawFile) -> bytes:
    name = Path(named.file).name
    try:
        content = archive.read(path, name) if path.suffix == ".zip" else path.with_name(name).read_bytes()
    except OSError as error:
        raise UserError(f"{path.with_name(name)}: cannot be read: {error.strerror}") from None
    if content is None:
        raise UserError(f"{path}: its raw values '{name}' are missing: bring the file back again")
    return content


def find_results(path: Path) -> list[Path]:
    """Result files in a run folder, a results folder, or the file itself."""
    if path.is_dir():
        run = [file for file in (path / RESULTS_FILE, path / PARTIAL_FILE) if file.is_file()][:1]
        found = run or [file for file in sorted(path.glob("**/*.json")) if _may_be_result(file)]
        if not run:
            returned = sorted(path.glob(f"**/*{RETURNED}"))
            found += [file for file in returned if not file.with_name(RESULTS_FILE).is_file()]
        if not found:
            if (path / COMPARISON_FILE).is_file():
                raise UserError(f"{path}: no result files in it, but a comparison: name {path / COMPARISON_FILE}")
            raise UserError(f"{path}: no result files in it: run 'kdbench bench' first")
        return found
    if not path.exists():
        raise UserError(f"{path}: no such file or folder")
    return [path]


def _may_be_result(path: Path) -> bool:
    """Whether a JSON file in a folder is a result file, or one that was cut off: others are not looked at."""
    try:
        data = json.loads(path.read_bytes())
    except ValueError:
        return True
    return isinstance(data, dict) and {"kdbench", "schema"} <= data.keys() and "trials" not in data


def publish(path: Path, results_folder: Path | None = None) -> Path:
    """Copies a run's result pair to `results/<machine>/<date>-<name>.json`, without absolute paths; its path.

    Never overwrites an earlier one; results that are published already stay where they are.
    """
    result, _ = load_result(path)
    if not result.complete:
        raise UserError(f"{path}: its measurement was interrupted: only whole ones are published")
    folder = prepare_folder((results_folder or RESULTS) / result.machine.name)
    for published in sorted(folder.glob("*.json")):
        if load_result(published)[0].raw.sha256 == result.raw.sha256:
            return published
    day = re.sub(r"T.*", "", result.date)
    stem, number = f"{day}-{result.name}", 1
    while (folder / f"{stem}.json").exists():
        number += 1
        stem = f"{day}-{result.name}-{number}"
    raw = result.raw.model_copy(update={"file": f"{stem}.npz"})
    write_atomic(folder / raw.file, _raw_content(path, result.raw))
    placed = placeless(ResultFile, result.model_copy(update={"raw": raw}))
    write_atomic(folder / f"{stem}.json", placed.to_json())
    return folder / f"{stem}.json"
