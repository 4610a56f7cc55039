"""Tables as every writer takes them, and numbers as people read them."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Generic, TypeVar

from kdbench.stats import Interval

DASH = "–"
"""Where there is no number."""


@dataclass(frozen=True)
class Cell:
    text: str
    """As people read it, without the marks of its footnotes."""
    value: float | str | None = None
    """What it is sorted by, and what CSV and JSON give: a number in SI units, or a name."""
    low: float | None = None
    """The limits of its 95 % interval, in the units of the value."""
    high: float | None = None
    best: bool = False
    """Of its column or row, by intervals that separate it from all others there."""
    notes: tuple[int, ...] = ()
    """Numbers of the table's footnotes, from 1."""

    @property
    def marked(self) -> str:
        """The text with the marks of its footnotes: `distilled ¹ ²`."""
        return " ".join(filter(None, (self.text, *map(mark, self.notes))))


@dataclass(frozen=True)
class Column:
    name: str
    """Its heading."""
    key: str
    """What `--columns`, `--sort`, CSV and JSON call it: `latency_p50_s`."""
    left: bool = False
    """Text, which is aligned to the left."""


@dataclass(frozen=True)
class TextTable:
    """A titled table with numbered footnotes."""

    title: str
    columns: tuple[Column, ...]
    rows: tuple[tuple[Cell, ...], ...]
    notes: tuple[str, ...] = ()
    legend: str = ""
    """What a heading means that doesn't say it all."""

    @property
    def header(self) -> tuple[str, ...]:
        return tuple(column.name for column in self.columns)

    @property
    def lines(self) -> tuple[tuple[str, ...], ...]:
        """The rows as text, with the marks of their footnotes."""
        return tuple(tuple(cell.marked for cell in row) for row in self.rows)


Line = TypeVar("Line")
"""What a row of a table is made of."""


@dataclass(frozen=True)
class Shown(Generic[Line]):
    """A column, and what a line has in it."""

    column: Column
    cell: Callable[[Line], Cell]


FLAGS = Column("", "flags", left=True)
"""The marks of a row's footnotes."""


def table_of(
    title: str,
    shown: Sequence[Shown[Line]],
    lines: Iterable[Line],
    said: Callable[[Line], Sequence[str]] | None = None,
    legend: str = "",
) -> TextTable:
    """A row for each line; where `said` tells what has to be known of a line, with a column of its footnotes."""
    notes: dict[str, int] = {}
    columns, rows = tuple(one.column for one in shown), []
    for line in lines:
        row = tuple(one.cell(line) for one in shown)
        rows.append(row if said is None else (*row, flagged(said(line), notes)))
    return TextTable(title, columns if said is None else (*columns, FLAGS), tuple(rows), tuple(notes), legend)


def flagged(said: Sequence[str], notes: dict[str, int]) -> Cell:
    """The cell of a row's footnotes, which are added to `notes` where they are new."""
    numbers = tuple(notes.setdefault(text, len(notes) + 1) for text in dict.fromkeys(said))
    return Cell("", "; ".join(said) or None, notes=numbers)


def name_cell(name: str | None) -> Cell:
    return Cell(name or DASH, name)


Number = TypeVar("Number", float, int)


def number_cell(value: Number | None, show: Callable[[Number], str]) -> Cell:
    """A number as `show` has it, or a dash."""
    return Cell(DASH) if value is None else Cell(show(value), float(value))


def interval_cell(found: Interval | None, show: Callable[[Interval], str]) -> Cell:
    """A number and its interval as `show` has them, or a dash."""
    return Cell(DASH) if found is None else Cell(show(found), found.value, found.low, found.high)


def seconds(value: float | None) -> str:
    """`135 µs`, `3.36 ms`, `1.20 s`; a dash where there is no number."""
    return _small(value, "s")


def joules(value: float | None) -> str:
    """`135 µJ`, `3.36 mJ`."""
    return _small(value, "J")


def _small(value: float | None, unit: str) -> str:
    if value is None:
        return DASH
    for prefix, size in (("", 1.0), ("m", 1e-3), ("µ", 1e-6)):
        if value >= size:
            return f"{three_digits(value / size)} {prefix}{unit}"
    return f"{value * 1e9:.0f} n{unit}"


def size(value: float | None, units: tuple[str, ...] = ("B", "kB", "MB", "GB")) -> str:
    """Decimal units: `197 kB`, `2.83 MB`."""
    if value is None:
        return DASH
    amount = float(value)
    for unit in units[:-1]:
        if amount < 999.5:
            return f"{three_digits(amount)} {unit}".rstrip()
        amount /= 1000
    return f"{three_digits(amount)} {units[-1]}"


def count(value: float | None) -> str:
    """`174 k`, `1.71 M`."""
    return size(value, ("", "k", "M", "G"))


def money(value: float | None, currency: str = "") -> str:
    """Three digits that count, however small: `$0.00222`, `EUR 12.4`."""
    if value is None:
        return DASH
    return f"{currency}{' ' * currency.isalpha()}{Decimal(f'{value:.3g}'):f}"


def three_digits(value: float) -> str:
    if value >= 99.95 or value == int(value):
        return f"{value:.0f}"
    return f"{value:.1f}" if value >= 9.995 else f"{value:.2f}"


def percent(value: float | None) -> str:
    return DASH if value is None else f"{100 * value:.1f} %"


def points(difference: Interval | None) -> str:
    """A difference of accuracies or of F1 in points: `−0.7 [−1.6, 0.2]`."""
    if difference is None:
        return DASH
    low, high = (_point(value).lstrip("+") for value in (difference.low, difference.high))
    return f"{_point(difference.value)} [{low}, {high}]"


def _point(share: float) -> str:
    text = f"{100 * share:+.1f}".replace("-", "−")
    return "0.0" if text in ("+0.0", "−0.0") else text


def ratio(found: Interval | None, brief: bool = False) -> str:
    """`3.86× [3.74, 3.98]`; where the interval covers 1 `no difference [0.98, 1.02]`, without the interval if brief."""
    if found is None:
        return DASH
    interval = f"[{three_digits(found.low)}, {three_digits(found.high)}]"
    if found.low <= 1 <= found.high:
        return "no difference" if brief else f"no difference {interval}"
    return f"{three_digits(found.value)}× {interval}"


def mark(number: int) -> str:
    """A footnote's number: `¹²`."""
    return str(number).translate(str.maketrans("0123456789", "⁰¹²³⁴⁵⁶⁷⁸⁹"))
