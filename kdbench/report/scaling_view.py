"""How throughput grows with batch and threads: a table for each backend and sizes."""

from collections.abc import Sequence
from dataclasses import replace
from itertools import groupby

from kdbench.report import rounds
from kdbench.report.ladder_tables import said_of
from kdbench.report.rows import Row
from kdbench.report.table import Ladder
from kdbench.report.text import (
    DASH,
    Cell,
    Column,
    TextTable,
    count_of,
    flagged,
    name_cell,
    number_cell,
    numbers,
    seconds_of,
)
from kdbench.stats import Interval

LEGEND = (
    "per s: samples a second; p50: median latency, with the digits that the processes' spread supports. Efficiency: "
    "the median latency with one thread, by that with several and their number, paired by round; thread counts were "
    "measured one after the other, not in turns."
)


def scaling_tables(ladder: Ladder) -> list[TextTable]:
    """Rows are rungs by batch, columns thread counts; those of which no cell has a number are left out."""
    rows = sorted(ladder.rows, key=lambda row: (row.backend, row.dims))
    tables = []
    for (backend, dims), group in groupby(rows, key=lambda row: (row.backend, row.dims)):
        found = list(group)
        if not all(row.error for row in found):
            table = _table(ladder, found, f"{backend}{f', {dims}' if dims else ''}")
            sizes = (("dims", dims),) if dims else ()
            tables.append(replace(table, common=(("backend", backend), *sizes)))
    return tables


def _table(ladder: Ladder, rows: Sequence[Row], where: str) -> TextTable:
    threads = sorted({row.threads for row in rows})
    cells = {(row.rung, row.batch, row.threads): row for row in rows}
    columns = [Column("rung", "rung", left=True), Column("batch", "batch")]
    for number in threads:
        name = f"{number} thread{'s' if number > 1 else ''}"
        columns += [Column(f"{name}: per s", f"throughput_per_s_{number}"), Column("p50", f"latency_p50_s_{number}")]
        if number > 1 and 1 in threads:
            columns.append(Column("efficiency", f"efficiency_{number}"))
    notes: dict[str, int] = {}
    lines = []
    for rung in dict.fromkeys(row.rung for row in rows):
        for batch in sorted({row.batch for row in rows if row.rung == rung}):
            of = [cells.get((rung, batch, number)) for number in threads]
            line = [name_cell(rung), number_cell(batch, str)]
            one = cells.get((rung, batch, 1))
            for number, row in zip(threads, of, strict=True):
                line += _timed(ladder, row, notes)
                if number > 1 and 1 in threads:
                    line.append(_efficiency(ladder, one, row, notes))
            lines.append(tuple(line))
    return TextTable(f"{where}: batch and threads", tuple(columns), tuple(lines), tuple(notes), LEGEND)


def _timed(ladder: Ladder, row: Row | None, notes: dict[str, int]) -> list[Cell]:
    """Samples a second with the cell's footnotes, and the median latency."""
    if row is None:
        return [Cell(DASH, notes=flagged(["not measured: no part of that plan"], notes).notes), Cell(DASH)]
    marks, level = flagged(said_of(row), notes).notes, rounds.level_of(ladder)
    if row.throughput_per_s is None or row.latency_p50_s is None:
        return [Cell(DASH, notes=marks), Cell(DASH)]
    rate = rounds.around(row.throughput_per_s, rounds.throughput_logs(ladder, row), level)
    time = rounds.around(row.latency_p50_s, rounds.latency_logs(ladder, row), level)
    return [
        _between(Cell(count_of(row.throughput_per_s, rate), row.throughput_per_s, notes=marks), rate),
        _between(Cell(seconds_of(row.latency_p50_s, time), row.latency_p50_s), time),
    ]


def _between(cell: Cell, found: Interval | None) -> Cell:
    return Cell(cell.text, cell.value, found.low, found.high, notes=cell.notes) if found else cell


def _efficiency(ladder: Ladder, one: Row | None, row: Row | None, notes: dict[str, int]) -> Cell:
    """`0.87 [0.84, 0.90]`; a dash where either has no number."""
    if one is None or row is None or one.error or row.error:
        return Cell(DASH)
    found = rounds.ratio(rounds.latency_logs(ladder, one), rounds.latency_logs(ladder, row), rounds.level_of(ladder))
    if found is None:
        return Cell(DASH, notes=flagged(["no interval of fewer than two rounds"], notes).notes)
    share = Interval(found.value / row.threads, found.low / row.threads, found.high / row.threads)
    value, low, high = numbers(share)
    return Cell(f"{value} [{low}, {high}]", share.value, share.low, share.high)
