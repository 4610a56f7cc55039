"""Rows as CSV: a stable interface, one row a cell."""

import csv
import io
from collections.abc import Iterable, Sequence
from dataclasses import astuple

from kdbench.errors import printable
from kdbench.report.rows import COLUMNS, Row
from kdbench.report.scenarios import ScenarioRow


def to_csv(rows: Iterable[Row | ScenarioRow], columns: Sequence[str] = COLUMNS) -> str:
    """A header and a line for each row; empty where there is no number, flags joined by `; `."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(columns)
    for row in rows:
        values = ("; ".join(v) if isinstance(v, tuple) else v for v in astuple(row))
        writer.writerow(printable(v) if isinstance(v, str) else v for v in values)
    return buffer.getvalue()
