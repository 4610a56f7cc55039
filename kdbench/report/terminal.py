"""Tables on a terminal of 100 columns."""

from dataclasses import replace

from rich import box
from rich.console import Console
from rich.measure import Measurement
from rich.table import Table

from kdbench.errors import printable
from kdbench.report.ladder_tables import ladder_tables, rungs_table, unmeasured
from kdbench.report.operators import slimming_lines
from kdbench.report.scenario_tables import scenario_tables, unmeasured_loads
from kdbench.report.table import Ladder
from kdbench.report.text import Cell, Column, TextTable, mark

WIDTH = 100
LONGEST_NAME = 16
WIDEST_MARKS = 9
"""Of a row's footnotes, which go on in a second line rather than push a column of numbers off the table."""
SPARE = ("p99", "per s", "size", "F1 macro %")
"""Columns that a table which is too wide goes without, in this order; reports have them all."""


def print_ladder(ladder: Ladder) -> None:
    console = _console()
    for content in (*ladder_tables(ladder, brief=True), *scenario_tables(ladder)):
        _print(console, content)
        console.print()
    made = rungs_table(ladder)
    if made:
        _print(console, made)
        for line in slimming_lines(ladder.result.artifacts):
            console.print(printable(line))
        console.print()
    for line in (*unmeasured(ladder.rows), *unmeasured_loads(ladder)):
        console.print(printable(line))


def print_table(content: TextTable) -> None:
    """A table with its legend and footnotes."""
    _print(_console(), content)


def _console() -> Console:
    return Console(width=WIDTH, highlight=False, markup=False)


def _print(console: Console, content: TextTable) -> None:
    console.print(printable(content.title), style="bold")  # of its own: a table's is broken where the table is narrower
    table, spare = _table(content, ()), 0
    while (
        spare < len(SPARE) and Measurement.get(console, console.options.update(max_width=1000), table).maximum > WIDTH
    ):
        spare += 1
        table = _table(content, SPARE[:spare])
    console.print(table)
    if content.legend:
        console.print(printable(content.legend))
    for number, note in enumerate(content.notes, 1):
        console.print(f"{mark(number)} {printable(note)}")


def _table(content: TextTable, without: tuple[str, ...]) -> Table:
    table = Table(
        box=box.SIMPLE_HEAD,
        show_edge=False,
        padding=(0, 1, 0, 0),
    )
    kept = [number for number, column in enumerate(content.columns) if column.name not in without]
    for number in kept:
        column = content.columns[number]
        table.add_column(
            column.name,
            justify="left" if column.left else "right",
            no_wrap=bool(column.name),
            overflow="fold",
            max_width=None if column.name else WIDEST_MARKS,
        )
    for row in content.rows:
        table.add_row(*(printable(_shown(row[number], content.columns[number])) for number in kept))
    return table


def _shown(cell: Cell, column: Column) -> str:
    named = column.left and isinstance(cell.value, str) and column.name
    return replace(cell, text=_shortened(cell.text)).marked if named else cell.marked


def _shortened(name: str) -> str:
    """The ends of a name that is too long for the table."""
    return name if len(name) <= LONGEST_NAME else f"{name[: LONGEST_NAME // 2 - 1]}…{name[-LONGEST_NAME // 2 :]}"
