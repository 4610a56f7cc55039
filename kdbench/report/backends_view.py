"""Rungs by backends: one table a batch, thread count and sizes, of one measure."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from numpy.typing import NDArray

from kdbench import stats
from kdbench.report import rounds
from kdbench.report.ladder_tables import said_of, shared
from kdbench.report.rows import Metric, Row
from kdbench.report.table import Ladder
from kdbench.report.text import (
    DASH,
    Bounds,
    Cell,
    Column,
    TextTable,
    count_of,
    flagged,
    interval_cell,
    name_cell,
    percent,
    ratio,
    seconds_of,
)

Place = tuple[int, int, str]
"""Batch, threads and sizes."""

Beats = Callable[["Compared", "Compared"], bool]
"""Whether an interval separates the first from the second, to its advantage."""


@dataclass(frozen=True)
class Compared:
    """A cell of one measure, and what it is told from others by: logarithms by round, or answers to the samples."""

    cell: Cell
    ladder: Ladder
    logs: rounds.Logs | None = None
    answers: NDArray[Any] | None = None


@dataclass(frozen=True)
class Measure:
    title: str
    compared: Callable[[Ladder, Row], Compared]
    beats: Beats
    legend: str


def _latency(ladder: Ladder, row: Row) -> Compared:
    logs = rounds.latency_logs(ladder, row)
    return Compared(_timed(ladder, row.latency_p50_s, logs, seconds_of), ladder, logs)


def _throughput(ladder: Ladder, row: Row) -> Compared:
    logs = rounds.throughput_logs(ladder, row)
    return Compared(_timed(ladder, row.throughput_per_s, logs, count_of), ladder, logs)


def _timed(ladder: Ladder, value: float | None, logs: rounds.Logs, show: Callable[[float, Bounds | None], str]) -> Cell:
    found = rounds.around(value, logs, rounds.level_of(ladder))
    if value is None or found is None:
        return Cell(DASH) if value is None else Cell(show(value, None), value)
    return Cell(show(value, found), value, found.low, found.high)


def _speedup(ladder: Ladder, row: Row) -> Compared:
    if row.rung == ladder.result.baseline and not row.error:
        return Compared(Cell("1", 1.0), ladder)
    # The baseline's own row may be one that is not shown.
    ours, theirs = (rounds.latency_logs(ladder, one) for one in (row, replace(row, rung=ladder.result.baseline)))
    logs = {number: theirs[number] - ours[number] for number in ours.keys() & theirs.keys()}
    return Compared(interval_cell(row.ratio, ratio), ladder, logs)


def _accuracy(ladder: Ladder, row: Row) -> Compared:
    shares: dict[Metric, float | None] = {"accuracy": row.accuracy, "f1": row.f1_micro, "agreement": row.agreement}
    value = shares[ladder.metric]
    cell = Cell(DASH) if value is None else Cell(percent(value).removesuffix(" %"), value)
    return Compared(cell, ladder, answers=_answers(ladder, row))


def _answers(ladder: Ladder, row: Row) -> NDArray[Any] | None:
    """Which of a cell's answers are right [N]; of several labels a sample, the answers themselves [N, C]."""
    raw = {(e.rung, e.backend, e.threads): e.raw for e in ladder.result.evaluations}
    asked = [raw.get((rung, row.backend, row.threads)) for rung in (row.rung, ladder.result.baseline)]
    ours, theirs = (None if name is None else ladder.arrays[f"predictions.{name}"] for name in asked)
    expected = theirs if ladder.metric == "agreement" else ladder.arrays.get("labels")
    if ours is None or expected is None or ours.shape != expected.shape:
        return None
    return ours if ladder.metric == "f1" else ours == expected


def _lower(ours: Compared, theirs: Compared) -> bool:
    found = rounds.difference(ours.logs or {}, theirs.logs or {}, rounds.level_of(ours.ladder))
    return found is not None and found.high < 0


def _higher(ours: Compared, theirs: Compared) -> bool:
    return _lower(theirs, ours)


def _better(ours: Compared, theirs: Compared) -> bool:
    """More of the same samples right, or a higher F1."""
    left, right = ours.answers, theirs.answers
    if left is None or right is None or left.shape != right.shape:
        return False
    if ours.ladder.metric == "f1":
        return stats.f1_difference(left, right, ours.ladder.arrays["labels"]).low > 0
    return stats.accuracy_difference(left, right).low > 0


MEASURES: dict[str, Measure] = {
    "latency": Measure("median latency", _latency, _lower, "Digits are those that the processes' spread supports."),
    "throughput": Measure(
        "samples a second", _throughput, _higher, "Digits are those that the processes' spread supports."
    ),
    "speed-up": Measure(
        "speed-up against {baseline}",
        _speedup,
        _higher,
        "Against {baseline} on the same backend: what the model gains.",
    ),
    "accuracy": Measure("{metric}, %", _accuracy, _better, "Through the backend itself, on the same samples."),
}
"""What a table of backends can show."""

BOLD = (
    "Bold: the best backend of a row, where the 95 % interval of its difference to each of the others, paired by "
    "{paired}, separates them; never across result files."
)
METRICS: dict[Metric, str] = {"accuracy": "accuracy", "f1": "micro F1", "agreement": "agreement with {baseline}"}


def backend_tables(ladders: Sequence[Ladder], measure: str) -> list[TextTable]:
    """A table for each batch, thread count and sizes, without those that have no number at all.

    Results of one name and baseline stand side by side, each under its machine's name; others below each other.
    """
    tables, groups = [], dict[tuple[str, str, str], list[Ladder]]()
    for one in ladders:
        groups.setdefault((one.result.name, one.result.baseline, one.metric), []).append(one)
    for group in groups.values():
        places = dict.fromkeys((row.batch, row.threads, row.dims) for one in group for row in one.rows)
        tables += [_table(group, place, measure) for place in places]
    return [table for table in tables if any(cell.value is not None for row in table.rows for cell in row[1:])]


def _table(ladders: Sequence[Ladder], place: Place, measure: str) -> TextTable:
    notes: dict[str, int] = {}
    rungs = dict.fromkeys(row.rung for ladder in ladders for row in ladder.rows)
    rows = tuple(
        (name_cell(rung), *(cell for ladder in ladders for cell in _part(ladder, rung, place, measure, notes, ladders)))
        for rung in rungs
    )
    one, wanted, (batch, threads, dims) = ladders[0], MEASURES[measure], place
    words = {"baseline": one.result.baseline, "metric": METRICS[one.metric].format(baseline=one.result.baseline)}
    where = f"{threads} thread{'s' if threads > 1 else ''}, batch {batch}{f', {dims}' if dims else ''}"
    bold = BOLD.format(paired="sample" if measure == "accuracy" else "round")
    return TextTable(
        f"{one.result.name}: {wanted.title.format(**words)}, {where}",
        (Column("rung", "rung", left=True), *(Column(name, name) for name in _headings(ladders))),
        rows,
        tuple(notes),
        f"{wanted.legend.format(**words)} {bold}",
        shared(threads, batch, dims),
    )


def _headings(ladders: Sequence[Ladder]) -> list[str]:
    """Of the columns: the backend, led by what tells its file from the others."""
    machines = [ladder.result.machine.name for ladder in ladders]
    leads = [
        f"{machine}/{ladder.source}" if machines.count(machine) > 1 else machine
        for machine, ladder in zip(machines, ladders, strict=True)
    ]
    return [
        backend if len(ladders) == 1 else f"{lead}: {backend}"
        for lead, ladder in zip(leads, ladders, strict=True)
        for backend in _backends(ladder)
    ]


def _backends(ladder: Ladder) -> list[str]:
    return list(dict.fromkeys(row.backend for row in ladder.rows))


def _part(
    ladder: Ladder, rung: str, place: Place, measure: str, notes: dict[str, int], ladders: Sequence[Ladder]
) -> list[Cell]:
    """What a file has of a rung: a cell for each of its backends, and the best of them in bold."""
    wanted, cells, found = MEASURES[measure], list[Cell](), list[Compared]()
    for backend in _backends(ladder):
        row = _row(ladder, rung, backend, place)
        one = wanted.compared(ladder, row) if row else Compared(Cell(DASH), ladder)
        said = [*(said_of(row) if row else ()), *_reasons(ladder, row, one.cell, measure)]
        said += _other_file(ladders, ladder, rung)
        found.append(one)
        cells.append(replace(one.cell, notes=flagged(said, notes).notes))
    if measure == "speed-up" and rung == ladder.result.baseline:
        return cells
    told = [number for number, cell in enumerate(cells) if cell.value is not None]
    for best in told:
        if len(told) > 1 and all(wanted.beats(found[best], found[other]) for other in told if other != best):
            cells[best] = replace(cells[best], best=True)
    return cells


def _row(ladder: Ladder, rung: str, backend: str, place: Place) -> Row | None:
    return next(
        (
            row
            for row in ladder.rows
            if (row.rung, row.backend) == (rung, backend) and (row.batch, row.threads, row.dims) == place
        ),
        None,
    )


def _reasons(ladder: Ladder, row: Row | None, cell: Cell, measure: str) -> list[str]:
    """Why a cell has no number, where its row doesn't say so."""
    if cell.value is not None or (row and row.error):
        return []
    if row is None:
        return ["not measured: no part of that plan"]
    if measure == "speed-up":
        return [f"no ratio: {ladder.result.baseline} has no number there, or too few rounds"]
    if measure != "accuracy":
        return ["no number: too few runs"]
    if ladder.metric == "agreement" and row.rung == ladder.result.baseline:
        return ["what the others agree with"]
    return ["not judged: measured on generated inputs" if ladder.result.inputs == "generated" else "not judged"]


def _other_file(ladders: Sequence[Ladder], ladder: Ladder, rung: str) -> list[str]:
    """Said where a rung of another machine is not the first one's file."""
    for first in ladders:
        theirs, ours = (
            next((artifact.sha256 for artifact in one.result.artifacts if artifact.rung == rung), None)
            for one in (first, ladder)
        )
        if theirs is not None:
            same = first is ladder or ours in (None, theirs)
            return [] if same else [f"another file of that name than on {first.result.machine.name}"]
    return []
