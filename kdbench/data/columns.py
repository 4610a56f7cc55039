"""Columns of text from CSV, TSV, JSONL and Parquet files."""

import csv
import io
import json
from pathlib import Path
from typing import Any

from kdbench.errors import UserError, first_line, nearest
from kdbench.records import read_text

Columns = dict[str, list[str]]


def read_columns(path: Path) -> Columns:
    """All columns of a .csv, .tsv, .jsonl or .parquet file by name, as text; raises UserError where it is damaged."""
    match path.suffix.lower():
        case ".parquet":
            return _parquet(path)
        case ".jsonl":
            return parse_jsonl(read_text(path), str(path))
        case ".tsv":
            return parse_csv(read_text(path), str(path), "\t")
        case _:
            return parse_csv(read_text(path), str(path))


def column(columns: Columns, name: str, where: str) -> list[str]:
    """A column by name, or a UserError with the nearest one."""
    if name not in columns:
        raise UserError(f"{where}: no column '{name}': {nearest(name, columns)}")
    return columns[name]


def parse_csv(text: str, where: str, delimiter: str = ",") -> Columns:
    """Columns of a table whose first row names them; every row has as many entries."""
    try:
        rows = list(csv.reader(io.StringIO(text.removeprefix("\ufeff"), newline=""), delimiter=delimiter, strict=True))
    except csv.Error as error:
        raise UserError(f"{where}: not a table: {first_line(error)}") from None
    rows = [row for row in rows if row]
    if len(rows) < 2:
        raise UserError(f"{where}: no rows below the names of the columns")
    names = rows[0]
    if len(set(names)) < len(names):
        raise UserError(f"{where}: two columns have the same name: rename one")
    for number, row in enumerate(rows[1:], 1):
        if len(row) != len(names):
            raise UserError(f"{where}: row {number} has {len(row)} entries, the table {len(names)} columns")
    return {name: [row[place] for row in rows[1:]] for place, name in enumerate(names)}


def parse_jsonl(text: str, where: str) -> Columns:
    """Columns of one JSON object a line; every line has the keys of the first."""
    columns: Columns = {}
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            entry = json.loads(line)
        except (ValueError, RecursionError):
            raise UserError(f"{where}: line {number} is not valid JSON") from None
        if not isinstance(entry, dict):
            raise UserError(f"{where}: line {number} is not a JSON object")
        if not columns:
            columns = {name: [] for name in entry}
        for name in columns:
            if name not in entry:
                raise UserError(f"{where}: line {number} has no '{name}': {nearest(name, entry)}")
            columns[name].append(_text(entry[name]))
    if not columns:
        raise UserError(f"{where}: no lines in it")
    return columns


def _parquet(path: Path) -> Columns:
    try:
        from pyarrow import parquet
    except ModuleNotFoundError:
        raise UserError(f"{path}: Parquet files need pyarrow: pip install pyarrow") from None
    if not path.is_file():
        raise UserError(f"{path}: no such file")
    try:
        table = parquet.read_table(path).to_pydict()
    except Exception as error:  # pyarrow has its own errors beside OSError and ValueError
        raise UserError(f"{path}: not a readable Parquet file: {first_line(error, 80)}") from None
    return {name: [_text(value) for value in values] for name, values in table.items()}


def _text(value: Any) -> str:
    """As a CSV file would hold it."""
    return value if isinstance(value, str) else str(int(value)) if isinstance(value, bool) else str(value)
