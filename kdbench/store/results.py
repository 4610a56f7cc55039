"""Result files and comparisons, each a record with its raw arrays beside it."""

import io
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from kdbench import archive
from kdbench.errors import UserError
from kdbench.records import Comparison, RawFile, ResultFile, sealed
from kdbench.records.base import from_json, json_object, placeless, read_text
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
    """Writes the raw arrays under a name that holds their hash, then the JSON that names it: the pair always fits.

    The record is sealed, and in the newest schema.
    """
    content = archive.npz_bytes(arrays)
    digest = sha256(content)
    raw = path.with_name(f"{path.stem}.{digest[:8]}.npz")
    result = sealed(result.model_copy(update={"raw": RawFile(file=raw.name, sha256=digest)}))
    write_both(path, result, content)
    for old in path.parent.glob(f"{path.stem}.????????.npz"):
        if old != raw:
            old.unlink()
    return result


def write_both(path: Path, result: ResultFile | Comparison, content: bytes) -> None:
    """Writes the raw arrays, `content`, under the name that the record has for them, then the record; or neither."""
    raw = path.with_name(result.raw.file)
    earlier = raw.exists()
    write_atomic(raw, content)
    try:
        write_atomic(path, result.to_json())
    except UserError:
        if not earlier:  # what no record names would stay for good
            raw.unlink()
        raise


def remove_results(path: Path) -> None:
    """Removes a result file and its raw arrays."""
    path.unlink(missing_ok=True)
    for raw in path.parent.glob(f"{path.stem}.????????.npz"):
        raw.unlink()


def save_returned(results: Path, out: Path) -> Path:
    """Writes a result file and its raw arrays as one file `out`, which is read like the two; without absolute paths."""
    result, _ = load_result(results)
    raw, text = result.raw.file, sealed(placeless(ResultFile, result)).to_json()
    write_archive(out, {RESULTS_FILE: text.encode(), raw: results.with_name(raw)})
    return out


def load_result(path: Path) -> tuple[ResultFile, Arrays]:
    """A result file and its raw arrays; raises UserError where either was cut off, edited or is missing."""
    result = from_json(ResultFile, _text(path), str(path))
    arrays = _raw_arrays(path, result.raw)
    rungs = {artifact.rung for artifact in result.artifacts}
    named = [(m.rung, m.raw, f"{array}.{m.raw}") for m in result.measurements for array in ("latencies", "rounds")]
    named += [(e.rung, e.raw, f"predictions.{e.raw}") for e in result.evaluations]
    named += [
        (s.rung, s.raw, f"{array}.{s.raw}") for s in result.scenarios for array in ("scenarios", "scenario_rounds")
    ]
    for rung, number, array in named:
        if rung not in rungs or (number is not None and array not in arrays):
            raise UserError(f"{path}: a cell of '{rung}' has no artifact or no raw values: was it edited?")
    return result, arrays


def load_comparison(path: Path) -> tuple[Comparison, Arrays]:
    """A comparison and its raw arrays; raises UserError where either was cut off, edited or is missing."""
    comparison = from_json(Comparison, _text(path), str(path))
    arrays = _raw_arrays(path, comparison.raw)
    for trial in comparison.trials:
        if f"predictions.{trial.raw}" not in arrays:
            raise UserError(f"{path}: seed {trial.seed} of '{trial.method}' has no raw values: was it edited?")
    return comparison, arrays


def load_record(path: Path) -> ResultFile | Comparison:
    """The record of a result file or of a comparison, whichever lies there, without its raw arrays."""
    text = _text(path)
    if "trials" in json_object(text, str(path)):
        return from_json(Comparison, text, str(path))
    return from_json(ResultFile, text, str(path))


def load(path: Path) -> tuple[ResultFile | Comparison, Arrays]:
    """A result file or a comparison, whichever lies there, and its raw arrays."""
    return load_comparison(path) if isinstance(load_record(path), Comparison) else load_result(path)


def _text(path: Path) -> str:
    """The record's JSON, from a file of its own or one with the raw arrays."""
    if path.suffix != ".zip":
        return read_text(path)
    content = archive.read(path, RESULTS_FILE)
    if content is None:
        raise UserError(f"{path}: no {RESULTS_FILE} in it: not what 'kdbench bench' says to bring back")
    return content.decode(errors="replace")


def _raw_arrays(path: Path, named: RawFile) -> Arrays:
    """The arrays beside the record at `path`, or in one file with it."""
    content, raw = raw_content(path, named), path.with_name(Path(named.file).name)
    arrays = archive.arrays_of(io.BytesIO(content), str(raw))
    if sha256(content) != named.sha256:
        raise UserError(f"{raw}: not the file that {path.name} was written with (sha256 differs): restore both")
    return arrays


def raw_content(path: Path, named: RawFile) -> bytes:
    """The bytes of the raw arrays that the record at `path` names; raises UserError where they are missing."""
    name = Path(named.file).name
    try:
        content = archive.read(path, name) if path.suffix == ".zip" else path.with_name(name).read_bytes()
    except FileNotFoundError:
        raise UserError(f"{path.with_name(name)}: is missing beside {path.name}: bring both") from None
    except (OSError, ValueError) as error:  # ValueError for what can be no file's name
        reason = error.strerror if isinstance(error, OSError) else error
        raise UserError(f"{path}: its raw values {name!r} cannot be read: {reason}") from None
    if content is None:
        raise UserError(f"{path}: its raw values '{name}' are missing: bring the file back again")
    return content


NO_RESULTS = "{}: no result files in it: 'kdbench bench' makes some, 'kdbench results add' publishes them"


def find_results(path: Path) -> list[Path]:
    """Result files in a run folder, a results folder, or the file itself."""
    found = _results_of(path)
    if not found and find_comparisons(path):
        raise UserError(f"{path}: no result files in it, but a comparison of methods: show it by --view methods")
    if not found:
        raise UserError(NO_RESULTS.format(path))
    refuse_twice([(file, digest) for file in found if (digest := _raw_hash(file))])
    return found


def _results_of(path: Path) -> list[Path]:
    if not path.exists():
        raise UserError(f"{path}: no such file or folder")
    if not path.is_dir():
        return [path]
    run = [file for file in (path / RESULTS_FILE, path / PARTIAL_FILE) if file.is_file()][:1]
    if run:
        return run
    returned = [file for file in sorted(path.glob(f"**/*{RETURNED}")) if not file.with_name(RESULTS_FILE).is_file()]
    files = [file for file in sorted(path.glob("**/*.json")) if not _outlived(file)]
    return [file for file in files if kind_of(file) == "result"] + returned


def _outlived(file: Path) -> bool:
    """Whether it is of a measurement that was interrupted, beside a whole one."""
    return file.name == PARTIAL_FILE and file.with_name(RESULTS_FILE).is_file()


def find_comparisons(path: Path) -> list[Path]:
    """Comparisons in a run folder or a results folder, or the file itself where it is one; there may be none."""
    if not path.is_dir():
        return [path] if path.suffix == ".json" and path.is_file() and kind_of(path) == "comparison" else []
    own = path / COMPARISON_FILE
    if own.is_file():
        return [own]
    return [file for file in sorted(path.glob("**/*.json")) if kind_of(file) == "comparison"]


def find_all(paths: Sequence[Path]) -> list[Path]:
    """Result files and comparisons below the given files and folders, each once.

    Raises UserError for one that does not exist, and for a folder without any.
    """
    found: list[Path] = []
    for path in paths:
        compared = find_comparisons(path)
        results = [] if compared == [path] else _results_of(path)
        if not results and not compared:
            raise UserError(NO_RESULTS.format(path))
        found += [*results, *compared]
    return list(dict.fromkeys(found))


def refuse_twice(found: Iterable[tuple[Path, str]]) -> None:
    """Raises UserError where two of the files, each with the hash of its raw arrays, hold the same run: it would count
    twice."""
    first: dict[str, Path] = {}
    for path, digest in found:
        earlier = first.setdefault(digest, path)
        if earlier != path:
            raise UserError(f"{path}: the same run as {earlier} (raw values {digest[:12]}…): leave one of them out")


def kind_of(path: Path) -> str | None:
    """What a JSON file in a folder is, `result` also of one that was cut off; None for others, not looked at."""
    data = _data(path)
    if data is None:
        return "result"
    if not isinstance(data, dict) or not {"kdbench", "schema", "raw"} <= data.keys():
        return None
    return "comparison" if "trials" in data else "result"


def _raw_hash(path: Path) -> str | None:
    """Of the raw arrays that a result file names; None where it doesn't, for whoever loads it to say."""
    data = _data(path)
    raw = data.get("raw") if isinstance(data, dict) else None
    digest = raw.get("sha256") if isinstance(raw, dict) else None
    return digest if isinstance(digest, str) else None


def _data(path: Path) -> Any:
    """What a JSON file holds; None where it is cut off or can't be read."""
    try:
        content = archive.read(path, RESULTS_FILE) if path.suffix == ".zip" else path.read_bytes()
        return json.loads(content or b"")
    except (OSError, ValueError, RecursionError, UserError):
        return None
