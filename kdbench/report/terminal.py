"""Tables on a terminal of 100 columns."""

from collections.abc import Mapping
from dataclasses import replace

from rich import box
from rich.console import Console
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from kdbench.errors import printable
from kdbench.report.ladder_tables import ladder_tables, rungs_table, unmeasured
from kdbench.report.operators import slimming_lines
from kdbench.report.rendering import Found
from kdbench.report.scenario_tables import scenario_tables, unmeasured_loads
from kdbench.report.spiral import turns_table
from kdbench.report.table import Ladder
from kdbench.report.text import Cell, TextTable, mark, shortened

WIDTH = 100
LONGEST_NAME = 16
NAMES = ("rung", "parent", "method", "target")
"""Columns whose names are shortened to it."""
LONGEST_TEXT = 40
"""In one line; sentences are broken."""
WIDEST_MARKS = 9
"""Of a row's footnotes, which go on in a second line rather than push a column of numbers off the table."""
SPARE = ("p99", "per s", "size", "F1 macro %", "p", "param.")
"""Columns that a table which is too wide goes without, in this order; reports have them all."""


def print_ladder(ladder: Ladder) -> None:
    """Each part with an empty line behind it."""
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
    spiral = ladder.result.spiral
    if spiral:
        _print(console, turns_table(spiral))
        for remark in spiral.remarks:
            console.print(f"\n{printable(remark)}")
        console.print()
    left_out = [*unmeasured(ladder.rows), *unmeasured_loads(ladder)]
    for line in left_out:
        console.print(printable(line))
    if left_out:
        console.print()


def print_found(found: Found) -> None:
    """A ladder as `kdbench run` prints it, or the tables of another view, with all of their columns."""
    console = _console()
    if found.view == "ladder" and not found.asked.columns:
        for one in found.ladders:
            if len(found.ladders) > 1:
                console.print(printable(f"{one.result.machine.name}, {one.source or one.result.name}"), style="bold")
            print_ladder(one)
        return
    for number, content in enumerate(found.tables(brief=True)):
        if number:
            console.print()
        _print(console, content, whole=True)


def print_table(content: TextTable, whole: bool = False) -> None:
    """A table with its legend and footnotes; one that is too wide goes without spare columns, or, where it has to be
    whole, in parts below each other."""
    _print(_console(), content, whole)


def _console() -> Console:
    return Console(width=WIDTH, highlight=False, markup=False, emoji=False)


def _print(console: Console, content: TextTable, whole: bool = False) -> None:
    console.print(printable(content.title), style="bold")  # of its own: a table's is broken where the table is narrower
    kept, spare = list(range(len(content.columns))), 0
    if not whole and _width(console, content, kept) > WIDTH:  # without columns that say nothing
        kept = [number for number in kept if any(row[number].marked for row in content.rows)]
    while not whole and spare < len(SPARE) and _width(console, content, kept) > WIDTH:
        spare += 1
        kept = [number for number in kept if content.columns[number].name not in SPARE[:spare]]
    for part in _parts(console, content, kept):
        console.print(_table(content, part))
    if content.legend:
        console.print(printable(content.legend))
    for number, note in enumerate(content.notes, 1):
        console.print(f"{mark(number)} {printable(note)}")


def _width(console: Console, content: TextTable, kept: list[int]) -> int:
    return Measurement.get(console, console.options.update(max_width=1000), _table(content, kept)).maximum


def _parts(console: Console, content: TextTable, kept: list[int]) -> list[list[int]]:
    """The columns in groups that fit, each led by the first one."""
    parts = [kept[:1]]
    for number in kept[1:]:
        if len(parts[-1]) > 1 and _width(console, content, [*parts[-1], number]) > WIDTH:
            parts.append(kept[:1])
        parts[-1].append(number)
    return parts


def _table(content: TextTable, kept: list[int]) -> Table:
    table = Table(
        box=box.SIMPLE_HEAD,
        show_edge=False,
        padding=(0, 1, 0, 0),
    )
    named = [number for number, column in enumerate(content.columns) if column.key in NAMES and column.name]
    short = shortened((row[number].text for number in named for row in content.rows), LONGEST_NAME)
    for number in kept:
        column = content.columns[number]
        long = max((len(row[number].text) for row in content.rows), default=0) > LONGEST_TEXT
        table.add_column(
            Text(printable(column.name)),
            justify="left" if column.left else "right",
            no_wrap=bool(column.name) and not long,
            overflow="fold",
            max_width=None if column.name else WIDEST_MARKS,
        )
    for row in content.rows:
        table.add_row(*(_shown(row[number], short if number in named else {}) for number in kept))
    return table


def _shown(cell: Cell, short: Mapping[str, str]) -> Text:
    text = replace(cell, text=short.get(cell.text, cell.text)).marked
    return Text(printable(text), style="bold" if cell.best else "")
