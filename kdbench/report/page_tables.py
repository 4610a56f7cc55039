"""A table as the report page's template takes it: each cell split into what is read and what it is sorted by."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from kdbench.report.text import Cell, Column, TextTable

MANY = 11
"""Columns; a table of more is printed smaller."""
FEW = 14
"""Rows; a table of no more is printed on one page."""


@dataclass(frozen=True)
class PageCell:
    tag: str
    """`th` of the one that names its row, else `td`."""
    kind: str
    """Its classes."""
    text: str
    interval: str = ""
    room: float = 0
    """Digits as wide as the longest interval of the column, so that the numbers before it stand below each other."""
    number: str | None = None
    name: str | None = None
    """What it is sorted by, where that isn't its text."""
    notes: tuple[int, ...] = ()


@dataclass(frozen=True)
class Head:
    key: str
    name: str
    number: bool
    room: float


@dataclass(frozen=True)
class Block:
    """A table with all that belongs to it."""

    id: str
    title: str
    heads: tuple[Head, ...]
    rows: tuple[tuple[PageCell, ...], ...]
    legend: str
    notes: tuple[str, ...]
    common: Mapping[str, str] = field(default_factory=dict)
    """What all rows share, by the name of the filter that asks for it."""

    @property
    def wide(self) -> bool:
        return len(self.heads) > MANY

    @property
    def short(self) -> bool:
        return len(self.rows) <= FEW


def block(table: TextTable, id: str, common: Mapping[str, str]) -> Block:
    """`common` is laid over what the table itself says that its rows share."""
    silent = not any(cell.notes for row in table.rows for cell in row)
    kept = [at for at, column in enumerate(table.columns) if column.key != "flags" or not silent]
    rooms = {
        at: 0.0 if table.columns[at].left else max((_width(_interval(row[at])) for row in table.rows), default=0.0)
        for at in kept
    }
    # A heading without words would be a button without a name.
    heads = tuple(
        Head(column.key, column.name or "notes", not column.left, rooms[at])
        for at in kept
        for column in [table.columns[at]]
    )
    rows = tuple(tuple(_cell(row[at], table.columns[at], at == 0, rooms[at]) for at in kept) for row in table.rows)
    return Block(id, table.title, heads, rows, table.legend, table.notes, {**dict(table.common), **common})


def _cell(cell: Cell, column: Column, first: bool, room: float) -> PageCell:
    interval = _interval(cell) if room else ""
    sorted_by = cell.value if isinstance(cell.value, str) and cell.text else None
    kinds = ("num" if not column.left else "name" if column.key != "flags" else "", "best" if cell.best else "")
    return PageCell(
        tag="th" if first and column.left else "td",
        kind=" ".join(filter(None, kinds)),
        text=cell.text.removesuffix(f" {interval}") if interval else cell.text,
        interval=interval,
        room=room,
        number=f"{float(cell.value):.12g}" if isinstance(cell.value, int | float) else None,
        name=sorted_by if sorted_by is not None and (sorted_by != cell.text or cell.notes) else None,
        notes=cell.notes,
    )


def _interval(cell: Cell) -> str:
    """What stands in brackets at the end of a number's text."""
    return cell.text[cell.text.rindex(" [") + 1 :] if " [" in cell.text and cell.text.endswith("]") else ""


def _width(text: str) -> float:
    """About as many digits as are as wide as the text: other signs of an interval are narrow."""
    return round(sum(1.0 if sign.isdigit() or sign == "−" else 0.5 for sign in text), 1)
