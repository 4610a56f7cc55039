"""Rows as CSV: a stable interface, one row a cell."""

import csv
import io
from collections.abc import Iterable
from dataclasses import astuple

from kdbench.report.table import COLUMNS, Row


def to_csv(rows: Iterable[Row]) -> str:
    """A header and a line for each row; empty where there is no number, flags joined by `; `."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(COLUMNS)
    for row in rows:
        writer.writerow("; ".join(v) if isinstance(v, tuple) else v for v in astuple(row))
    return buffer.getvalue()
