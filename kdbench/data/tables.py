"""Rows of numbers: CSV, TSV, JSONL or Parquet with a label column or several of 0 and 1, and ARFF."""

import csv
import html
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from kdbench.data.columns import Columns, column, read_columns
from kdbench.data.dataset import Dataset, Labels, class_labels, set_aside
from kdbench.data.preprocess import fit
from kdbench.errors import UserError, first_line
from kdbench.records import Count, Task, read_text

ATTRIBUTE = re.compile(r"@attribute\s+('(?:[^'\\]|\\.)*'|\"(?:[^\"\\]|\\.)*\"|\S+)\s+(.+)", re.IGNORECASE)
LABEL = re.compile(r"<label\s[^>]*?name\s*=\s*(\"[^\"]*\"|'[^']*')")


@dataclass(frozen=True)
class Table:
    """Columns as text, and the values that a nominal one may have."""

    where: str
    columns: Columns
    nominal: dict[str, tuple[str, ...]]

    def __len__(self) -> int:
        return len(next(iter(self.columns.values())))


def load(
    train: Path,
    test: Path | None = None,
    test_samples: Count | None = None,
    label: str | None = None,
    labels: tuple[str, ...] = (),
    labels_file: Path | None = None,
    labelled: bool = True,
    drop: tuple[str, ...] = (),
    classes: tuple[str, ...] = (),
) -> Dataset:
    """Features [N, F] as float32, normalised one by one; nominal ones of ARFF become one column of 0 and 1 a value.

    The class stands in the column `label`, by default 'label', or an ARFF file's last attribute. A sample with several
    classes has a column of 0 and 1 for each of `labels`, which the `.xml` of a Mulan set may name (`labels_file`). All
    columns but these and `drop` are features. Without a test file `test_samples` are set aside. With `labelled` false
    the training labels are not looked at, and a test file may be without them too.
    """
    ours = _read(train)
    theirs = _read(test) if test else None
    if labels_file is not None:
        labels = _labels_of(labels_file, ours)
    targets = labels or (label or _default_label(train, ours),)
    for name in (*drop, *(targets if labelled else ())):
        column(ours.columns, name, ours.where)
    features = [name for name in ours.columns if name not in {*targets, *drop}]
    if not features:
        raise UserError(f"{train}: no columns beside the labels: features are needed")
    tables = [ours, theirs] if theirs else [ours]
    x = [_features(table, features, ours.nominal) for table in tables]
    has = [labelled, theirs is not None and (labelled or set(targets) <= set(theirs.columns))]
    task: Task = "multi_label" if labels else "classification"
    if labels:
        y = [_zeros_and_ones(table, labels) if known else None for table, known in zip(tables, has, strict=False)]
        names = labels
    else:
        texts = [
            column(table.columns, targets[0], table.where) if known else None
            for table, known in zip(tables, has, strict=False)
        ]
        names, *pair = class_labels(texts[0], texts[1] if theirs else None, classes, str(train))
        y = pair[: len(tables)]
    if theirs is None:
        rest, held = set_aside(y[0], len(x[0]), test_samples)
        x = [x[0][rest], x[0][held]]
        y = [None, None] if y[0] is None else [y[0][rest], y[0][held]]
    return Dataset(x[0], y[0], x[1], y[1], names, fit(x[0], scale=1.0), task)


def parse_arff(text: str, where: str) -> Table:
    """Numeric and nominal attributes of an ARFF file, dense or sparse; raises UserError that names a wrong line."""
    names: list[str] = []
    nominal: dict[str, tuple[str, ...]] = {}
    rows: list[list[str]] | None = None
    for number, raw in enumerate(text.split("\n"), 1):
        line = raw.strip()
        if not line or line.startswith("%"):
            continue
        if rows is not None:
            rows.append(_arff_row(line, names, nominal, f"{where}: line {number}"))
        elif line.lower().startswith("@data"):
            rows = []
        elif line.lower().startswith("@attribute"):
            match = ATTRIBUTE.fullmatch(line)
            if match is None:
                raise UserError(f"{where}: line {number} should be '@attribute NAME TYPE'")
            name, kind = _unquoted(match[1]), match[2].strip()
            if name in names:
                raise UserError(f"{where}: line {number}: a second attribute '{name}': rename one")
            if kind.startswith("{") and kind.endswith("}"):
                nominal[name] = tuple(_entries(kind[1:-1], f"{where}: line {number}"))
                if not any(nominal[name]):
                    raise UserError(f"{where}: line {number}: attribute '{name}' has no values: name them")
            elif kind.split()[0].lower() not in ("numeric", "real", "integer"):
                raise UserError(f"{where}: line {number}: attribute '{name}' is {kind[:20]}: only numbers and {{a,b}}")
            names.append(name)
    if not names or not rows:
        raise UserError(f"{where}: not an ARFF file with @attribute, @data and rows")
    return Table(where, {name: [row[i] for row in rows] for i, name in enumerate(names)}, nominal)


def _arff_row(line: str, names: Sequence[str], nominal: dict[str, tuple[str, ...]], where: str) -> list[str]:
    if not (line.startswith("{") and line.endswith("}")):
        row = _entries(line, where)
        if len(row) != len(names):
            raise UserError(f"{where}: {len(row)} entries, but {len(names)} attributes")
        return row
    # What a sparse row leaves out is 0, or the first value of a nominal attribute.
    row = [nominal[name][0] if name in nominal else "0" for name in names]
    for entry in _entries(line[1:-1], where) if line[1:-1].strip() else ():
        place, _, value = entry.partition(" ")
        if not (place.isascii() and place.isdigit() and len(place) < 10 and int(place) < len(names)):
            raise UserError(f"{where}: '{place[:20]}' should be an attribute's number, 0 to {len(names) - 1}")
        row[int(place)] = _unquoted(value.strip())
    return row


def _entries(text: str, where: str) -> list[str]:
    try:
        row = next(csv.reader([text], quotechar="'", skipinitialspace=True, escapechar="\\"))
    except (csv.Error, StopIteration) as error:
        raise UserError(f"{where}: not a row of entries: {first_line(error)}") from None
    return [_unquoted(entry.strip()) for entry in row]


def _unquoted(text: str) -> str:
    return text[1:-1] if len(text) > 1 and text[0] == text[-1] and text[0] in "'\"" else text


def _read(path: Path) -> Table:
    if path.suffix.lower() == ".arff":
        return parse_arff(read_text(path), str(path))
    return Table(str(path), read_columns(path), {})


def _default_label(path: Path, table: Table) -> str:
    return list(table.columns)[-1] if path.suffix.lower() == ".arff" else "label"


def _labels_of(path: Path, table: Table) -> tuple[str, ...]:
    """The labels that an `.xml` names, in the order of the table's columns."""
    named = {html.unescape(match[1:-1]) for match in LABEL.findall(read_text(path))}
    if not named:
        raise UserError(f'{path}: no <label name="…"> in it')
    for name in sorted(named):
        column(table.columns, name, table.where)
    return tuple(name for name in table.columns if name in named)


def _features(table: Table, names: Sequence[str], nominal: dict[str, tuple[str, ...]]) -> NDArray[np.float32]:
    """Columns [N, F]; a nominal one has a column for each of its values, or one where it has two."""
    parts: list[NDArray[np.float64]] = []
    for name in names:
        values = column(table.columns, name, table.where)
        if name in nominal:
            for value in values:
                if value not in nominal[name]:
                    raise UserError(f"{table.where}: '{name}' should be one of {nominal[name][:5]}, not '{value[:20]}'")
            shown = nominal[name][1:] if len(nominal[name]) == 2 else nominal[name]
            parts += [np.array([value == one for value in values], dtype=np.float64) for one in shown]
            continue
        try:
            parts.append(np.array([float(value) for value in values]))
        except ValueError:
            wrong = next(value for value in values if not _is_number(value))
            hint = "fill it in or leave the row out" if wrong in ("", "?") else "name it in data.options.drop"
            raise UserError(f"{table.where}: column '{name}' should be numbers, not '{wrong[:20]}': {hint}") from None
    with np.errstate(over="ignore"):  # infinity is refused, with its name, by the Dataset
        return np.stack(parts, axis=1).astype(np.float32)


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _zeros_and_ones(table: Table, names: Sequence[str]) -> Labels:
    """Labels [N, classes] of columns of 0 and 1."""
    columns = [column(table.columns, name, table.where) for name in names]
    for name, values in zip(names, columns, strict=True):
        for value in values:
            if value not in ("0", "1"):
                raise UserError(f"{table.where}: label column '{name}' should be 0 or 1, not '{value[:20]}'")
    return np.array([[value == "1" for value in values] for values in columns], dtype=np.int64).T.copy()
