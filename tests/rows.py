"""What result files say, as rows."""

from pathlib import Path

from kdbench.report.table import Row, load_ladders, rows_of


def load_rows(*paths: str | Path) -> list[Row]:
    """The rows of all result files below the given files and folders."""
    return rows_of(load_ladders(map(Path, paths)))
