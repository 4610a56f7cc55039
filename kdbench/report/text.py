"""Numbers as people read them, and the ladder as cells of text: shared by every writer."""

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import groupby

from kdbench.report.table import Ladder, Row


@dataclass(frozen=True)
class TextTable:
    """A titled table whose cells are text, with numbered footnotes."""

    title: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    notes: tuple[str, ...] = ()


def seconds(value: float | None) -> str:
    """`135 µs`, `3.36 ms`, `1.20 s`; a dash where there is no number."""
    if value is None:
        return "–"
    for unit, size in (("s", 1.0), ("ms", 1e-3), ("µs", 1e-6)):
        if value >= size:
            return f"{three_digits(value / size)} {unit}"
    return f"{value * 1e9:.0f} ns"


def size(value: float | None, units: tuple[str, ...] = ("B", "kB", "MB", "GB")) -> str:
    """Decimal units: `197 kB`, `2.83 MB`."""
    if value is None:
        return "–"
    amount = float(value)
    for unit in units[:-1]:
        if amount < 999.5:
            return f"{three_digits(amount)} {unit}".rstrip()
        amount /= 1000
    return f"{three_digits(amount)} {units[-1]}"


def count(value: float | None) -> str:
    """`174 k`, `1.71 M`."""
    return size(value, ("", "k", "M", "G"))


def three_digits(value: float) -> str:
    if value >= 99.95 or value == int(value):
        return f"{value:.0f}"
    return f"{value:.1f}" if value >= 9.995 else f"{value:.2f}"


def percent(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:.1f} %"


def points(row: Row) -> str:
    """The accuracy difference in points: `−0.7 [−1.6, 0.2]`."""
    if row.accuracy_diff is None or row.accuracy_diff_low is None or row.accuracy_diff_high is None:
        return "–"
    low, high = (_point(value).lstrip("+") for value in (row.accuracy_diff_low, row.accuracy_diff_high))
    return f"{_point(row.accuracy_diff)} [{low}, {high}]"


def _point(share: float) -> str:
    text = f"{100 * share:+.1f}".replace("-", "−")
    return "0.0" if text in ("+0.0", "−0.0") else text


def speedup(row: Row, brief: bool = False) -> str:
    """`3.86× [3.74, 3.98]`; where the interval covers 1 `no difference [0.98, 1.02]`, without the interval if brief."""
    if row.speedup is None or row.speedup_low is None or row.speedup_high is None:
        return "–"
    interval = f"[{three_digits(row.speedup_low)}, {three_digits(row.speedup_high)}]"
    if row.speedup_low <= 1 <= row.speedup_high:
        return "no difference" if brief else f"no difference {interval}"
    return f"{three_digits(row.speedup)}× {interval}"


def mark(number: int) -> str:
    """A footnote's number: `¹²`."""
    return str(number).translate(str.maketrans("0123456789", "⁰¹²³⁴⁵⁶⁷⁸⁹"))


def ladder_tables(ladder: Ladder, brief: bool = False) -> list[TextTable]:
    """One table for each backend, thread count and batch; backends without any number are left to `unmeasured`.

    Accuracy differences are in points; they and speed-ups are against the baseline, with 95 % intervals.
    """
    tables = []
    for (backend, threads, batch), group in groupby(ladder.rows, key=lambda row: (row.backend, row.threads, row.batch)):
        rows = list(group)
        if all(row.error for row in rows):
            continue
        notes: dict[str, int] = {}
        cells = tuple(_ladder_row(row, ladder.result.baseline, notes, brief) for row in rows)
        title = (
            f"{backend}, {threads} thread{'s' if threads > 1 else ''}, batch {batch}, against {ladder.result.baseline}"
        )
        header = ("rung", "acc. %", "Δ points", "size", "p50", "p99", "per s", "speed-up", "")
        tables.append(TextTable(title, header, cells, tuple(notes)))
    return tables


def _ladder_row(row: Row, baseline: str, notes: dict[str, int], brief: bool) -> tuple[str, ...]:
    said = (*row.flags, f"error: {row.error}") if row.error else row.flags
    marks = " ".join(mark(notes.setdefault(text, len(notes) + 1)) for text in said)
    return (
        row.rung,
        percent(row.accuracy).removesuffix(" %"),
        points(row),
        size(row.size_bytes),
        seconds(row.latency_p50_s),
        seconds(row.latency_p99_s),
        count(row.throughput_per_s),
        "1" if row.rung == baseline else speedup(row, brief),
        marks,
    )


def details_table(ladder: Ladder) -> TextTable:
    """What doesn't change from batch to batch, and what a process costs before it is warm."""
    header = (
        "rung",
        "parent",
        "backend",
        "batch",
        "parameters",
        "MACs",
        "agreement",
        "McNemar p",
        "load",
        "first run",
        "peak memory",
    )
    rows = tuple(
        (
            row.rung,
            row.parent or "–",
            row.backend,
            str(row.batch),
            count(row.parameters),
            count(row.macs),
            percent(row.agreement),
            _p(ladder.mcnemar.get((row.rung, row.backend, row.threads))),
            seconds(row.load_s),
            seconds(row.first_run_s),
            size(row.peak_memory_bytes),
        )
        for row in ladder.rows
        if not row.error
    )
    return TextTable("Details", header, rows)


def _p(value: float | None) -> str:
    return "–" if value is None else f"{value:.2g}"


def unmeasured(rows: Iterable[Row]) -> list[str]:
    """One line for each backend of which no cell has a number."""
    reasons: dict[str, list[str | None]] = {}
    for row in rows:
        reasons.setdefault(row.backend, []).append(row.error)
    return [
        f"not measured: {'; '.join(dict.fromkeys(filter(None, errors)))}"
        for backend, errors in reasons.items()
        if all(errors)
    ]
