"""The two that are compared, cell by cell."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from numpy.typing import NDArray

from kdbench import stats
from kdbench.data.sizes import written
from kdbench.errors import UserError
from kdbench.records import Artifact, Evaluation, Measurement, ResultFile
from kdbench.report.claims import broken_by_kind
from kdbench.report.rows import Row
from kdbench.report.table import ladder
from kdbench.report.text import DASH
from kdbench.store import Arrays

OLD, NEW = "old", "new"
"""Rungs of two models that were measured in one file."""

Key = tuple[str, str, int, int, str]
"""Rung (empty where there are two models), backend, threads, batch, sizes."""


@dataclass(frozen=True)
class Side:
    """One of the two: its cells, by what tells them apart."""

    name: str
    result: ResultFile
    arrays: Arrays
    cells: dict[Key, tuple[Row, Measurement]]

    def artifact(self, key: Key) -> Artifact:
        return next(a for a in self.result.artifacts if a.rung == self.cells[key][1].rung)

    def evaluation(self, key: Key) -> Evaluation | None:
        m = self.cells[key][1]
        wanted = m.rung, m.backend, m.threads
        return next((e for e in self.result.evaluations if (e.rung, e.backend, e.threads) == wanted), None)

    def answers(self, key: Key) -> NDArray[Any] | None:
        found = self.evaluation(key)
        return None if found is None or found.raw is None else self.arrays[f"predictions.{found.raw}"]

    def medians(self, key: Key) -> dict[int, float]:
        """Of the processes, in seconds, by round; none where there are no numbers."""
        m = self.cells[key][1]
        if m.error is not None or m.raw is None:
            return {}
        return stats.process_medians(self.arrays[f"latencies.{m.raw}"], self.arrays[f"rounds.{m.raw}"])

    def broken(self, key: Key) -> dict[str, str]:
        row, m = self.cells[key]
        return broken_by_kind(self.artifact(key), m, self.evaluation(key), row.threads_used)


def sides_of(result: ResultFile, arrays: Arrays) -> tuple[Side, Side]:
    """Two models that were measured in turns."""
    rows = _rows(result, arrays)
    one, two = (
        Side(rung, result, arrays, {("", *key[1:]): cell for key, cell in rows.items() if key[0] == rung})
        for rung in (OLD, NEW)
    )
    return one, two


def side(name: str, result: ResultFile, arrays: Arrays) -> Side:
    """A file of a ladder."""
    return Side(name, result, arrays, _rows(result, arrays))


def _rows(result: ResultFile, arrays: Arrays) -> dict[Key, tuple[Row, Measurement]]:
    """Without ratios to a baseline, and what would be said of these."""
    shown = ladder(result.model_copy(update={"baseline": ""}), arrays)
    return {
        (m.rung, m.backend, m.threads, m.batch, written(m.dims)): (row, m)
        for row, m in zip(shown.rows, result.measurements, strict=True)
    }


def missing(old: Side, new: Side) -> tuple[str, ...]:
    """Cells that only OLD has."""
    return tuple(place_of(key) for key in old.cells if key not in new.cells)


def unknown(old: Side, new: Side) -> tuple[str, ...]:
    """Cells of both, of which OLD has no number to compare with."""
    errors = [(key, row.error) for key, (row, _) in old.cells.items() if key in new.cells]
    return said_once((key, f"OLD has no number: {error}") for key, error in errors if error)


def said_once(found: Iterable[tuple[Key, str]]) -> tuple[str, ...]:
    """Sentences on cells, each led by the first cell that it is said of: `cpu, 1 thread, batch 1, and 3 more: …`."""
    places: dict[str, list[str]] = {}
    for key, sentence in found:
        places.setdefault(sentence, []).append(place_of(key))
    others = {sentence: f", and {len(own) - 1} more" if len(own) > 1 else "" for sentence, own in places.items()}
    return tuple(f"{own[0]}{others[sentence]}: {sentence}" for sentence, own in places.items())


def place_of(key: Key) -> str:
    """`student on cpu, 2 threads, batch 8`."""
    rung, backend, threads, batch, dims = key
    where = f"{backend}, {threads} thread{'s' if threads > 1 else ''}, batch {batch}{f', {dims}' if dims else ''}"
    return f"{rung} on {where}" if rung else where


def remarks(old: Side, new: Side) -> tuple[str, ...]:
    """What should be known of two files that are compared; raises UserError for those of two machines."""
    one, two = old.result.machine, new.result.machine
    if one.hardware != two.hardware:
        names = [f"{machine.name} ({machine.cpu}, {machine.cores_logical} cores)" for machine in (one, two)]
        apart = names if names[0] != names[1] else [f"{names[0]}, {machine.hardware}" for machine in (one, two)]
        raise UserError(
            f"measured on two machines, which never share a ratio: OLD on {apart[0]}, NEW on {apart[1]}: measure both "
            "models in one job: kdbench compare OLD.onnx NEW.onnx"
        )
    said = []
    if old.result.name != new.result.name:
        said.append(f"two recipes: OLD is {old.result.name}, NEW is {new.result.name}")
    versions = [{"Python": machine.python, **machine.versions} for machine in (one, two)]
    changed = [
        f"{name} {versions[0].get(name, DASH)} → {versions[1].get(name, DASH)}"
        for name in sorted({**versions[0], **versions[1]})
        if versions[0].get(name) != versions[1].get(name)
    ]
    if changed:
        said.append(f"other versions, whose changes are among those of the models: {', '.join(changed)}")
    for name, ours, theirs in (("system", one.os, two.os), ("governor", one.governor, two.governor)):
        if ours != theirs:
            said.append(f"another {name}: {ours or DASH} → {theirs or DASH}")
    for side in (old, new):
        if not side.result.complete:
            said.append(f"{side.name.upper()} was interrupted: cells have fewer processes than were planned")
    added = [place_of(key) for key in new.cells if key not in old.cells]
    if added:
        said.append(f"only in NEW, with nothing to compare them to: {'; '.join(added)}")
    if old.result.raw.sha256 == new.result.raw.sha256:
        said.append("OLD and NEW are the same measurement")
    return tuple(said)
