"""Rows and tables as CSV: a stable interface, one row a cell."""

import csv
import io
from collections.abc import Iterable, Sequence
from operator import attrgetter

from kdbench.errors import printable
from kdbench.report.flat import Value, flattened
from kdbench.report.rows import COLUMNS, Row
from kdbench.report.scenarios import ScenarioRow
from kdbench.report.text import TextTable

FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n", "＝", "＋", "－", "＠")
"""How a text begins that a spreadsheet would compute."""


def to_csv(rows: Iterable[Row | ScenarioRow], columns: Sequence[str] = COLUMNS) -> str:
    """A header and a line for each row; empty where there is no number, flags joined by `; `."""
    return _written(columns, (plain_values(row, columns) for row in rows))


def tables_to_csv(tables: Sequence[TextTable]) -> str:
    """All tables under one header, each row led by its table's title."""
    return _written(*flattened(tables))


def plain_values(row: Row | ScenarioRow, columns: Sequence[str]) -> list[Value]:
    """Fields of a row, those of several texts joined by `; `."""
    found = (attrgetter(name)(row) for name in columns)
    return ["; ".join(value) if isinstance(value, tuple) else value for value in found]


def _written(columns: Sequence[str], rows: Iterable[Sequence[Value]]) -> str:
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(_text(name) for name in columns)
    for row in rows:
        writer.writerow(_text(value) if isinstance(value, str) else value for value in row)
    return buffer.getvalue()


def _text(text: str) -> str:
    """What no spreadsheet takes for a formula: led by an apostrophe where it begins like one, or with one itself."""
    shown = printable(text)
    return f"'{shown}" if shown.startswith((*FORMULA, "'")) else shown
