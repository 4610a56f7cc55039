"""Tables as every writer takes them, and numbers as people read them."""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Generic, Protocol, TypeVar

from kdbench.errors import printable
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
    common: tuple[tuple[str, str], ...] = ()
    """What all rows share, by the key of the column that would say it: `(("backend", "cpu"), ("batch", "1"))`."""

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


MOST_DIGITS = 4
"""Of the largest number of an interval, however narrow that is."""


def decimals(half: float, largest: float) -> int:
    """How many decimals a number has whose interval reaches `half` to either side; below zero for tens, hundreds, ….

    As many as give half of the interval two significant digits: what lies behind them says nothing. An interval of
    [3.74, 3.98] reaches 0.12, so there are two; one of [−11, 8] reaches 9.5, so there is one. But the `largest` of the
    numbers, without its sign, gets no more than four significant digits.
    """
    if not (math.isfinite(half) and math.isfinite(largest)):
        return 0
    most = MOST_DIGITS - 1 - _magnitude(largest) if largest > 0 else 1
    return min(most, 1 - _magnitude(half)) if half > 0 else most


def _magnitude(value: float) -> int:
    """The power of ten of the first of two significant digits: that of 0.0996 is −1, as it is printed as 0.10."""
    return int(f"{value:.1e}".partition("e")[2])


def fixed(value: float, places: int, plus: bool = False) -> str:
    """With so many decimals, and a minus that is as wide as a plus: `−0.70`."""
    text = f"{round(value, places):{'+' if plus else ''}.{max(0, places)}f}".replace("-", "−")
    return text.lstrip("+−") if not any(digit in text for digit in "123456789") else text


class Bounds(Protocol):
    """A number with an interval."""

    @property
    def value(self) -> float: ...
    @property
    def low(self) -> float: ...
    @property
    def high(self) -> float: ...


def numbers(found: Bounds, scale: float = 1.0, plus: bool = False) -> tuple[str, str, str]:
    """A number and the limits of its interval, times `scale`, with as many digits as the interval supports."""
    value, low, high = (scale * number for number in (found.value, found.low, found.high))
    places = decimals((high - low) / 2, max(abs(value), abs(low), abs(high)))
    return fixed(value, places, plus), fixed(low, places), fixed(high, places)


def seconds_of(value: float, found: Bounds | None) -> str:
    """`53.42 µs`, with as many digits as its interval supports; three where there is none."""
    unit, sizes = seconds(value).split()[1], {"s": 1.0, "ms": 1e-3, "µs": 1e-6, "ns": 1e-9}
    return seconds(value) if found is None else f"{numbers(found, 1 / sizes[unit])[0]} {unit}"


def count_of(value: float, found: Bounds | None) -> str:
    """`18.32 k`, likewise."""
    unit, sizes = count(value).partition(" ")[2], {"": 1.0, "k": 1e3, "M": 1e6, "G": 1e9}
    return count(value) if found is None else f"{numbers(found, 1 / sizes[unit])[0]} {unit}".rstrip()


def points(difference: Bounds | None, plus: bool = True) -> str:
    """A difference of accuracies or of F1 in points: `−0.70 [−1.62, 0.21]`."""
    if difference is None:
        return DASH
    value, low, high = numbers(difference, 100, plus)
    return f"{value} [{low}, {high}]"


def ratio(found: Bounds | None, brief: bool = False) -> str:
    """`3.86× [3.74, 3.98]`; where the interval covers 1 `no difference [0.98, 1.02]`, without the interval if brief."""
    if found is None:
        return DASH
    value, low, high = numbers(found)
    if found.low <= 1 <= found.high:
        return "no difference" if brief else f"no difference [{low}, {high}]"
    return f"{value}× [{low}, {high}]"


def mark(number: int) -> str:
    """A footnote's number: `¹²`."""
    return str(number).translate(str.maketrans("0123456789", "⁰¹²³⁴⁵⁶⁷⁸⁹"))


def plain(text: str) -> str:
    """On one line, without control characters, which SVG could not hold."""
    return printable(" ".join(text.split()))


def shortened(names: Iterable[str], most: int = 26) -> dict[str, str]:
    """Names as they are shown: of long ones beginning and end; numbered where those are another's too."""
    found: dict[str, str] = {}
    for name in dict.fromkeys(names):
        short = line = plain(name)
        if len(line) > most:
            short = f"{line[: most // 2 - 1]}…{line[-(most - most // 2) :]}"
        number = 2
        while short in found.values():
            short = f"{line[: most // 2 - 4]}…{line[-(most // 2 - 2) :]} ({number})"
            number += 1
        found[name] = short
    return found
