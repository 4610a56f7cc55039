"""Result files and comparisons, each a record with its raw arrays beside it."""

import io
import json
from pathlib import Path
from typing import TypeVar

from kdbench import archive
from kdbench.errors import UserError
from kdbench.records import Comparison, RawFile, ResultFile
from kdbench.records.base import from_json, placeless, read_text
from kdbench.store.writing import Arrays, sha256, write_archive, write_atomic

Raw = TypeVar("Raw", ResultFile, Comparison)
"""Records whose raw arrays lie beside them."""

RESULTS_FILE = "results.json"
PARTIAL_FILE = "results.partial.json"
"""Of a measurement under way or interrupted: a complete one is never replaced by it."""
COMPARISON_FILE = "comparison.json"
RETURNED = ".results.zip"
"""How the name of a result file ends that holds record and raw arrays in one, to be brought back from a machine."""


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
    content, raw = raw_content(path, named), path.with_name(Path(named.file).name)
    arrays = archive.arrays_of(io.BytesIO(content), str(raw))
    if sha256(content) != named.sha256:
        raise UserError(f"{raw}: not the file that {path.name} was written with (sha256 differs): restore both")
    return arrays


def raw_content(path: Path, named: RawFile) -> bytes:
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
