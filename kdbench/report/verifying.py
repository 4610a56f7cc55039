"""Whether published measurements are what they say: hashes, raw values, statistics and tables, computed again."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kdbench.benchmark.raw import FACTS
from kdbench.errors import UserError, first_line
from kdbench.records import Artifact, Comparison, Evaluation, Measurement, ResultFile, ScenarioMeasurement
from kdbench.report.markdown import comparison_to_markdown, to_markdown
from kdbench.report.outdated import outdated
from kdbench.report.table import Ladder, ladder, name_of
from kdbench.store import (
    PARTIAL_FILE,
    RESULTS,
    RESULTS_FILE,
    RETURNED,
    Arrays,
    Paths,
    find_all,
    load,
    paths_of,
    refuse_twice,
)

README = "README.md"

PUBLISHED = re.compile(r"\d{4}-\d\d-\d\d-.+\.(json|npz)")
"""Names of the files that are published: DATE-RECIPE."""

COMPUTING = (KeyError, ValueError, IndexError, ZeroDivisionError, TypeError, FloatingPointError, OverflowError)
"""What statistics raise for raw values that can't be."""

DIGITS = frozenset("0123456789abcdef")


@dataclass(frozen=True)
class Verified:
    """What was looked at and what was found, each a line that names its file and the next step."""

    files: tuple[Path, ...]
    problems: tuple[str, ...]
    remarks: tuple[str, ...] = ()
    """What should be known and is no fault, such as a file from before there were seals."""


def results_verify(*paths: Paths) -> Verified:
    """Computes again what the result files and comparisons below the given files and folders (default: `results`) say.

    Hashes, seals and schemas; raw values that are named, whole, possible, and no others; artifacts and their parents;
    two files of one run; statistics and tables; and the tables of a README.md that is generated from the folder.
    """
    places = paths_of(*paths) or [RESULTS]
    files, problems, remarks = find_all(places), list[str](), list[str]()
    read: dict[Path, tuple[ResultFile | Comparison, Arrays]] = {}
    for file in files:
        try:
            read[file] = load(file)
        except UserError as error:
            problems.append(str(error))
    ladders: dict[Path, Ladder] = {}
    for file, (record, arrays) in read.items():
        if not record.seal:
            remarks.append(f"{file}: has no seal, as it is of schema {record.schema_version}: an edit can't be told")
        found, table = _found(file, record, arrays)
        problems += [f"{file}: {line}" for line in (*found, *_misplaced(file, record))]
        if table:
            ladders[file] = table
    problems += _together([(file, record) for file, (record, _) in read.items()])
    known = {*files, *(file.with_name(record.raw.file) for file, (record, _) in read.items())}
    problems += [line for place in places if place.is_dir() for line in _strays(place, known)]
    for place in places:
        if place.is_dir() and not (problems or place.joinpath(RESULTS_FILE).is_file()):
            comparisons = [
                (record, arrays)
                for file, (record, arrays) in read.items()
                if isinstance(record, Comparison) and place in file.parents
            ]
            below = [table for file, table in ladders.items() if place in file.parents]
            problems += outdated(place / README, below, comparisons)
    return Verified(tuple(files), tuple(problems), tuple(remarks))


def _strays(place: Path, known: set[Path]) -> list[str]:
    """What has the name of a published file and belongs to none: a record that was overwritten, or lost its JSON."""
    problems = []
    for file in sorted(place.glob("**/*")):
        if file in known or not PUBLISHED.fullmatch(file.name):
            continue
        record = file.with_suffix(".json")
        if file == record:
            problems.append(f"{file}: neither results nor a comparison: restore it, or remove it")
        elif not record.is_file():
            problems.append(f"{file}: {record.name} is missing beside it: restore it, or remove this one")
    return problems


def _found(file: Path, record: ResultFile | Comparison, arrays: Arrays) -> tuple[list[str], Ladder | None]:
    """What is wrong within one file; its rows, where they can be computed."""
    problems = _hardware(record)
    if isinstance(record, Comparison):
        named = {f"predictions.{trial.raw}" for trial in record.trials}
        problems += [*_unreferenced(arrays, named), *_answers(named, arrays, record.task == "multi_label")]
        return problems + _computed(lambda: comparison_to_markdown(record, arrays)), None
    problems += [*_artifacts(record), *_raw(record, arrays)]
    if problems:  # numbers of what is wrong already mean nothing
        return problems, None
    problems = _computed(lambda: _tables(ladder(record, arrays)))
    return problems, None if problems else ladder(record, arrays, name_of(file))


def _tables(table: Ladder) -> str:
    return repr(table.rows) + repr(table.scenarios) + to_markdown([table])


def _computed(table: Callable[[], str]) -> list[str]:
    """Statistics and tables, computed twice from the raw values."""
    try:
        same = table() == table()
    except UserError as error:
        return [str(error)]
    except COMPUTING as error:
        name = type(error).__name__
        return [f"its statistics can't be computed ({name}: {first_line(error, 80)}): restore it, or measure again"]
    return [] if same else ["its tables come out otherwise a second time: report it, with the file"]


def _hardware(record: ResultFile | Comparison) -> list[str]:
    machine = record.machine
    if machine.fingerprint in ("", machine.hardware):
        return []
    return [
        f"its machine's fingerprint is {machine.fingerprint}, its hardware's {machine.hardware}: restore it, or "
        "measure again"
    ]


def _misplaced(file: Path, record: ResultFile | Comparison) -> list[str]:
    """A published file, which its name tells, in the folder of another machine."""
    published = file.name.startswith(f"{record.date[:10]}-{record.name}")
    if not published or file.name.endswith(RETURNED) or file.parent.resolve().name == record.machine.name:
        return []
    return [f"was measured on {record.machine.name}, and lies elsewhere: move it to a folder of that name"]


def _artifacts(result: ResultFile) -> list[str]:
    """Hashes, and who is whose parent."""
    problems, by_rung = list[str](), dict[str, Artifact]()
    for artifact in result.artifacts:
        if artifact.rung in by_rung:
            problems.append(f"has two artifacts '{artifact.rung}': measure again")
        by_rung[artifact.rung] = artifact
        if len(artifact.sha256) != 64 or not DIGITS.issuperset(artifact.sha256):
            problems.append(f"the sha256 of '{artifact.rung}' is none: measure again")
    for artifact in result.artifacts:
        parent = by_rung.get(artifact.parent or "")
        if result.recipe and parent and parent.sha256 != artifact.parent_sha256:  # else names may be of several runs
            problems.append(f"'{artifact.rung}' was made of another '{parent.rung}' than the one listed: run it again")
    cells: Sequence[Measurement | Evaluation] = (*result.measurements, *result.scenarios, *result.evaluations)
    for what in cells:
        known = by_rung.get(what.rung)
        if known is None or known.sha256 != what.artifact_sha256:
            problems.append(f"a cell of '{what.rung}' on {what.backend} is of another file: measure again")
    if result.baseline not in by_rung:
        problems.append(f"its baseline '{result.baseline}' is none of its rungs: measure again")
    return list(dict.fromkeys(problems))


def _raw(result: ResultFile, arrays: Arrays) -> list[str]:
    """Raw values: all that are named, whole and possible, and no others."""
    problems, named = list[str](), set[str]()
    for m in result.measurements:
        if m.raw is not None:
            problems += _latencies(m, arrays, result.settings.slice_runs)
            named |= {f"{kind}.{m.raw}" for kind in ("latencies", "rounds", "slices", *FACTS)}
        elif m.error is None:
            problems.append(f"{_cell(m)} has neither raw values nor an error: measure again")
    for s in result.scenarios:
        if s.raw is not None:
            problems += _loads(s, arrays)
            named |= {f"scenarios.{s.raw}", f"scenario_rounds.{s.raw}"}
    answers = {f"predictions.{e.raw}" for e in result.evaluations if e.raw is not None}
    labels = arrays.get("labels")
    told = any(artifact.task == "multi_label" for artifact in result.artifacts)
    multi = told if labels is None else labels.ndim == 2
    return [*problems, *_answers(answers, arrays, multi), *_unreferenced(arrays, named | answers)]


def _cell(m: Measurement) -> str:
    return f"the cell {m.rung}, {m.backend}, batch {m.batch}, threads {m.threads}"


def _latencies(m: Measurement, arrays: Arrays, most: int) -> list[str]:
    """Of a cell: as many rounds and slices as latencies, each slice within the cap of `most` runs."""
    latencies, rounds, slices = (arrays.get(f"{kind}.{m.raw}") for kind in ("latencies", "rounds", "slices"))
    if latencies is None or rounds is None or latencies.ndim != 1 or not _counted(rounds, latencies):
        return [f"{_cell(m)} has no round for each latency: restore its .npz, or measure again"]
    problems = []
    if not _positive(latencies):
        problems.append(f"{_cell(m)} has latencies that are not positive numbers: measure again")
    if not set(np.unique(rounds).tolist()) <= {process.round for process in m.processes}:
        problems.append(f"{_cell(m)} has latencies of rounds without a process: measure again")
    if slices is None:
        return problems  # of files that were made by hand
    if not _counted(slices, latencies):
        return [*problems, f"{_cell(m)} has no slice for each latency: measure again"]
    numbers, runs = np.unique(slices, return_counts=True)
    if len(np.unique(np.stack([slices, rounds]), axis=1).T) != len(numbers):
        problems.append(f"{_cell(m)} has a slice in two rounds: measure again")
    if runs.size and runs.max() > most:
        problems.append(f"{_cell(m)} has {runs.max()} runs in a slice, more than its cap of {most}: measure again")
    for name in FACTS:
        told = arrays.get(f"{name}.{m.raw}")
        if told is not None and told.shape != numbers.shape:
            problems.append(f"{_cell(m)} has '{name}' of {told.size} slices, and {numbers.size} slices: measure again")
    return problems


def _loads(s: ScenarioMeasurement, arrays: Arrays) -> list[str]:
    latencies, rounds = arrays.get(f"scenarios.{s.raw}"), arrays.get(f"scenario_rounds.{s.raw}")
    if latencies is None or latencies.ndim != 1 or not _counted(rounds, latencies):
        return [f"{_cell(s)} has no round for each latency: restore its .npz, or measure again"]
    return [] if _positive(latencies) else [f"{_cell(s)} has latencies that are not positive numbers: measure again"]


def _positive(values: NDArray[Any]) -> bool:
    return bool(values.dtype.kind == "f" and values.size and np.isfinite(values).all() and (values > 0).all())


def _counted(values: NDArray[Any] | None, of: NDArray[Any]) -> bool:
    """Whether there is a whole number for each of the others."""
    return values is not None and values.dtype.kind in "iu" and values.shape == of.shape


def _answers(named: set[str], arrays: Arrays, multi_label: bool) -> list[str]:
    """Predictions of as many samples as there are labels, or as all others have: classes, or 0 and 1 by label."""
    found = {name: arrays[name] for name in sorted(named) if name in arrays}
    labels = arrays.get("labels")
    found |= {} if labels is None else {"labels": labels}
    problems = []
    for name, values in found.items():
        if values.dtype.kind not in "iub" or values.ndim != (2 if multi_label else 1):
            problems.append(f"its '{name}' are no classes: restore its .npz, or measure again")
        elif values.size and (values.min() < 0 or (multi_label and values.max() > 1)):
            problems.append(f"its '{name}' has classes that can't be: restore its .npz, or measure again")
    if len({values.shape for values in found.values()}) > 1:
        lengths = ", ".join(f"{name} {'×'.join(map(str, values.shape))}" for name, values in found.items())
        problems.append(f"its answers are of different samples ({lengths[:120]}): measure again")
    return problems


def _unreferenced(arrays: Arrays, named: set[str]) -> list[str]:
    left = sorted(arrays.keys() - named - {"labels"})
    return [f"its .npz holds what no cell names: {', '.join(left[:4])}: restore it, or measure again"] if left else []


def _together(read: Sequence[tuple[Path, ResultFile | Comparison]]) -> list[str]:
    """Two files of one run, and files of two machines in one folder."""
    problems = []
    try:
        refuse_twice((file, record.raw.sha256) for file, record in read)
    except UserError as error:
        problems.append(str(error))
    first: dict[Path, tuple[Path, str]] = {}
    for file, record in read:
        if file.name in (RESULTS_FILE, PARTIAL_FILE) or file.name.endswith(RETURNED):
            continue
        earlier, hardware = first.setdefault(file.parent, (file, record.machine.hardware))
        if hardware != record.machine.hardware:
            problems.append(
                f"{file}: was measured on another machine ({record.machine.hardware}) than {earlier.name} beside it "
                f"({hardware}): take it out, and 'kdbench results add' it"
            )
    return problems
