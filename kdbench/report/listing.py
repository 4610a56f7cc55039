"""What lies in a folder of results, a line a file, and what is in one of them."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from kdbench.data.sizes import written
from kdbench.records import Comparison, Machine, Measurement, ResultFile, ScenarioMeasurement
from kdbench.report.again import commands, comparing
from kdbench.report.rows import Row
from kdbench.report.scenarios import ScenarioRow
from kdbench.report.table import Ladder, ladder
from kdbench.report.text import size
from kdbench.store import load, load_record

SHOWN = 12
"""Digits of a hash."""


@dataclass(frozen=True)
class Listed:
    """A result file, or a comparison of methods."""

    file: Path
    kind: Literal["results", "comparison"]
    machine: str
    fingerprint: str
    date: str
    """UTC, ISO 8601."""
    recipe: str
    rungs: tuple[str, ...]
    """Of a comparison, its methods."""
    backends: tuple[str, ...]
    cells: int
    """Of a comparison, its trained networks."""
    complete: bool
    sealed: bool


def listed(file: Path) -> Listed:
    """What a file holds, by its record alone; raises UserError for one that can't be read."""
    record = load_record(file)
    compared = isinstance(record, Comparison)
    if isinstance(record, Comparison):
        rungs, backends = [trial.method for trial in record.trials], ["cpu"]
        cells, complete = len(record.trials), True
    else:
        measured = cells_of(record)
        rungs, backends = [artifact.rung for artifact in record.artifacts], [m.backend for m in measured]
        cells, complete = len(measured), record.complete
    return Listed(
        file=file,
        kind="comparison" if compared else "results",
        machine=record.machine.name,
        fingerprint=record.machine.hardware,
        date=record.date,
        recipe=record.name,
        rungs=tuple(dict.fromkeys(rungs)),
        backends=tuple(dict.fromkeys(backends)),
        cells=cells,
        complete=complete,
        sealed=bool(record.seal),
    )


def cells_of(result: ResultFile) -> Sequence[Measurement]:
    """What was measured: latencies, or scenarios in their place."""
    return result.scenarios or result.measurements


Grid = tuple[tuple[str, ...], Sequence[tuple[str, ...]]]
"""Headings, and rows of text."""


@dataclass(frozen=True)
class Contents:
    """What is in a file: facts by name, and its artifacts and cells, each a grid of text."""

    facts: tuple[tuple[str, str], ...]
    artifacts: Grid
    cells: Grid


def contents(file: Path) -> Contents:
    """What is in a result file or a comparison; raises UserError for one that is damaged."""
    record, arrays = load(file)
    seal = f"sealed {record.seal[:SHOWN]}…" if record.seal else "no seal"
    kind = "measurement"
    if isinstance(record, Comparison):
        kind = "comparison of methods"
    elif not record.complete:
        kind = "measurement, interrupted"
    facts = [
        ("file", f"{kind}, schema {record.schema_version}, {seal}"),
        ("made", f"{record.date} by kdbench {record.kdbench}"),
        *_machine(record.machine),
        ("recipe", f"{record.name}{f': {record.recipe.description}' if record.recipe else ''}"),
    ]
    raw = ("raw", f"{record.raw.file}, {len(arrays)} arrays, sha256 {record.raw.sha256[:SHOWN]}…")
    if isinstance(record, Comparison):
        trials = [
            (t.method, str(t.seed), t.kept, str(t.parameters), f"{t.artifact_sha256[:SHOWN]}…") for t in record.trials
        ]
        facts += [raw, ("again", comparing(record))]
        return Contents(tuple(facts), (("method", "seed", "kept", "parameters", "sha256"), trials), ((), ()))
    settings = record.settings.model_dump(mode="json", exclude_none=True, exclude_defaults=True)
    facts += [
        ("settings", ", ".join(f"{name} {value}" for name, value in settings.items())),
        ("inputs", f"{record.inputs}{f', pack {record.inputs_sha256[:SHOWN]}…' if record.inputs_sha256 else ''}"),
        raw,
        *(("again", command) for command in commands(record)),
    ]
    return Contents(tuple(facts), _artifacts(record), _cells(ladder(record, arrays)))


def _machine(machine: Machine) -> Iterator[tuple[str, str]]:
    gpus = f", {', '.join(machine.gpus)}" if machine.gpus else ""
    cores = f"{machine.cores_logical} logical core{'s' * (machine.cores_logical != 1)}"
    yield "machine", f"{machine.name}, fingerprint {machine.hardware}"
    yield "", f"{machine.cpu}, {cores}, {size(machine.memory_bytes)}{gpus}, {machine.os}"
    yield "features", ", ".join(machine.features) or "none known"
    versions = {"Python": machine.python, **machine.versions}
    yield "versions", ", ".join(f"{name} {version}" for name, version in versions.items())


def _artifacts(result: ResultFile) -> Grid:
    rows = [
        (a.rung, a.parent or "–", a.step or "–", a.precision, size(a.size_bytes), f"{a.sha256[:SHOWN]}…")
        for a in result.artifacts
    ]
    return ("artifact", "parent", "step", "precision", "size", "sha256"), rows


def _cells(table: Ladder) -> Grid:
    """Of latencies or of scenarios; what was measured and how much speaks against it."""
    rows = []
    shown: Sequence[Row | ScenarioRow] = table.scenarios or table.rows
    for m, row in zip(cells_of(table.result), shown, strict=True):
        load = f" {m.scenario}" if isinstance(m, ScenarioMeasurement) else ""
        where = f"{m.backend}{load}{f', {written(m.dims)}' if m.dims else ''}"
        done = "error" if m.error else f"{len(row.flags)}" if row.flags else "–"
        processes = len({process.round for process in m.processes})
        rows.append((m.rung, where, str(m.threads), str(m.batch), str(processes), done))
    return ("cell", "backend", "threads", "batch", "processes", "flags"), rows
