"""A table as the report page's template takes it: each cell split into what is read and what it is sorted by."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from kdbench.report.text import Cell, Column, TextTable

MANY = 11
"""Columns from which on a table is printed smaller."""


@dataclass(frozen=True)
class PageCell:
    tag: str
    """`th` of the one that names its row, else `td`."""
    kind: str
    """Its classes."""
    text: str
    interval: str = ""
    room: int = 0
    """Letters of the longest interval of the column, so that the numbers before them stand below each other."""
    number: str | None = None
    name: str | None = None
    """What it is sorted by, where that isn't its text."""
    notes: tuple[int, ...] = ()


@dataclass(frozen=True)
class Head:
    key: str
    name: str
    number: bool


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


def block(table: TextTable, id: str, common: Mapping[str, str]) -> Block:
    """`common` is laid over what the table itself says that its rows share."""
    rooms = [
        max((len(_interval(row[at])) for row in table.rows), default=0) if not column.left else 0
        for at, column in enumerate(table.columns)
    ]
    rows = tuple(
        tuple(
            _cell(cell, column, at == 0, room)
            for at, (cell, column, room) in enumerate(zip(row, table.columns, rooms, strict=True))
        )
        for row in table.rows
    )
    # A heading without words would be a button without a name.
    heads = tuple(Head(column.key, column.name or "notes", not column.left) for column in table.columns)
    return Block(id, table.title, heads, rows, table.legend, table.notes, {**dict(table.common), **common})


def _cell(cell: Cell, column: Column, first: bool, room: int) -> PageCell:
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
