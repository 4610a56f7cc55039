"""Tables as plain data, for CSV, JSON and data frames: numbers in SI units, intervals in columns of their own."""

from collections.abc import Sequence

from kdbench.report.text import FLAGS, TextTable

Value = float | str | None


def keys_of(table: TextTable) -> list[str]:
    """Names of a table's columns, each with an interval followed by those of its limits."""
    keys: list[str] = []
    for number, column in enumerate(table.columns):
        if column.key != FLAGS.key:
            bounded = any(row[number].low is not None for row in table.rows)
            keys += [column.key, *([f"{column.key}_low", f"{column.key}_high"] if bounded else [])]
    return keys


def values_of(table: TextTable) -> list[dict[str, Value]]:
    """A dict for each row, by `keys_of`."""
    found = []
    for row in table.rows:
        known: dict[str, Value] = {}
        for column, cell in zip(table.columns, row, strict=True):
            known |= {column.key: cell.value, f"{column.key}_low": cell.low, f"{column.key}_high": cell.high}
        found.append({key: known[key] for key in keys_of(table)})
    return found


def flags_of(table: TextTable) -> list[list[str]]:
    """The footnotes of each row, led by the heading where they belong to one number of several."""
    found = []
    for row in table.rows:
        said = [
            table.notes[note - 1]
            if number == 0 or column.key == FLAGS.key
            else f"{column.key}: {table.notes[note - 1]}"
            for number, (column, cell) in enumerate(zip(table.columns, row, strict=True))
            for note in cell.notes
        ]
        found.append(list(dict.fromkeys(said)))
    return found


def best_of(table: TextTable) -> list[list[str]]:
    """The columns of each row whose cell is in bold."""
    return [[column.key for column, cell in zip(table.columns, row, strict=True) if cell.best] for row in table.rows]


def flattened(tables: Sequence[TextTable]) -> tuple[list[str], list[list[Value]]]:
    """All tables in one, led by their titles: its columns, and a list for each row; None where a table has no such
    column."""
    keys = list(dict.fromkeys(key for table in tables for key in keys_of(table)))
    rows: list[list[Value]] = []
    for table in tables:
        for values, best, flags in zip(values_of(table), best_of(table), flags_of(table), strict=True):
            known = {key: values.get(key) for key in keys}
            rows.append([table.title, *known.values(), "; ".join(best), "; ".join(flags)])
    return ["table", *keys, "best", FLAGS.key], rows
