"""The same results seen in different ways: each view makes tables that every writer takes."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TypeVar

from kdbench.errors import UserError, pick
from kdbench.report.backends_view import MEASURES, backend_tables
from kdbench.report.columns import fields_of
from kdbench.report.ladder_tables import details_table, ladder_tables, unmeasured
from kdbench.report.methods_view import Compared, methods_table
from kdbench.report.rows import place
from kdbench.report.scaling_view import scaling_tables
from kdbench.report.scenario_tables import scenario_tables, unmeasured_loads
from kdbench.report.scenarios import COLUMNS as SCENARIO_COLUMNS
from kdbench.report.scenarios import load_of
from kdbench.report.selection import in_order, known_column, rebased
from kdbench.report.spiral import turns_table
from kdbench.report.table import Ladder
from kdbench.report.text import FLAGS, Column, TextTable, name_cell

Line = TypeVar("Line")

VIEWS = ("ladder", "backends", "methods", "scaling")


def tables_of(
    results: Sequence[Ladder],
    comparisons: Sequence[Compared],
    view: str,
    *,
    columns: Sequence[str] = (),
    sort: str | None = None,
    baseline: str | None = None,
    measure: str = "latency",
    brief: bool = False,
    details: bool = True,
) -> list[TextTable]:
    """The tables of a view, each led by machine and result where there are several.

    `columns` are keys of the view's columns, for the ladder any field of a row; `sort` is one of them, `-` before it
    for the largest first; `baseline` is the rung that others are compared with. Of backends one `measure` is shown.
    A brief ladder is one for a terminal; one without `details` fits a page. Raises UserError for a name that is none of
    the known, and for results without anything to show.
    """
    pick(dict.fromkeys(VIEWS), view, "view")
    if view == "methods":
        if baseline is not None:
            raise UserError("--baseline: methods are compared with the student that learns from the labels alone")
        if not comparisons:
            raise UserError("nothing to show: methods are compared in a comparison.json, of `kdbench distill --seeds`")
        return [_arranged(methods_table(comparisons), columns, sort)]
    ladders = [rebased(one, baseline) for one in results]
    if view == "ladder":
        tables = [
            _led(table, one, len(ladders) > 1)
            for one in ladders_in_order(ladders, columns, sort)
            for table in _ladder(one, columns, brief, details and not brief and not columns)
        ]
        return _minded(tables, ladders)
    if view == "backends":
        pick(MEASURES, measure, "measure")
        tables = backend_tables(ladders, measure)
    else:
        tables = [_led(table, one, len(ladders) > 1) for one in ladders for table in scaling_tables(one)]
    if not tables:
        raise UserError(
            "nothing to show: no cell has a number for that view; --view ladder shows reasons and scenarios"
        )
    return _minded([_arranged(table, columns, sort) for table in tables], ladders)


def _minded(tables: Sequence[TextTable], ladders: Sequence[Ladder]) -> list[TextTable]:
    """The tables with what has to be known of their whole files below each."""
    several, said = len(ladders) > 1, []
    for one in ladders:
        name = f"{one.result.machine.name}, {one.source or one.result.name}: " if several else ""
        if not one.result.complete:
            said.append(f"{name}Interrupted: these are the cells that were measured.")
        if one.result.inputs == "generated":
            said.append(f"{name}Measured on generated inputs: there is no accuracy.")
    return [replace(table, legend=" ".join(filter(None, (table.legend, *said)))) for table in tables]


def _ladder(one: Ladder, columns: Sequence[str], brief: bool, details: bool) -> list[TextTable]:
    """Tables of a result file, what each rung is in detail, a spiral's turns, and last what could not be measured."""
    tables = [*ladder_tables(one, brief, columns), *scenario_tables(one, columns)]
    if details and any(not row.error for row in one.rows):
        tables.append(details_table(one))
    if details and one.result.spiral:
        tables.append(turns_table(one.result.spiral))
    reasons = [*unmeasured(one.rows), *unmeasured_loads(one)]
    if reasons:
        rows = tuple((name_cell(reason.removeprefix("not measured: ")),) for reason in reasons)
        tables.append(TextTable("Not measured", (Column("reason", "reason", left=True),), rows))
    return tables


def ladders_in_order(ladders: Sequence[Ladder], columns: Sequence[str] = (), sort: str | None = None) -> list[Ladder]:
    """The ladders with the rows of each of their tables in the order of a column, where they have it.

    Raises UserError for names of columns that none of them has.
    """
    known = list(dict.fromkeys(name for one in ladders for name in _columns_of(one)))
    for name in columns:
        known_column(name, known, "--columns")
    if sort is None:
        return list(ladders)
    name = known_column(sort.removeprefix("-"), known, "--sort")
    return [_in_order(one, sort) if name in _columns_of(one) else one for one in ladders]


def _columns_of(one: Ladder) -> list[str]:
    return [*(fields_of(one) if one.rows or not one.scenarios else ()), *(SCENARIO_COLUMNS if one.scenarios else ())]


def _in_order(one: Ladder, sort: str) -> Ladder:
    rows = [row for key in dict.fromkeys(map(place, one.rows)) for row in _sorted(one.rows, place, key, sort)]
    loads = [
        row for key in dict.fromkeys(map(load_of, one.scenarios)) for row in _sorted(one.scenarios, load_of, key, sort)
    ]
    return replace(one, rows=tuple(rows), scenarios=tuple(loads))


def _sorted(rows: Sequence[Line], place_of: Callable[[Line], object], key: object, sort: str) -> list[Line]:
    return in_order((row for row in rows if place_of(row) == key), sort, getattr)


def _led(table: TextTable, one: Ladder, several: bool) -> TextTable:
    return (
        replace(table, title=f"{one.result.machine.name}, {one.source or one.result.name}: {table.title}")
        if several
        else table
    )


def _arranged(table: TextTable, columns: Sequence[str], sort: str | None) -> TextTable:
    """The table with those columns alone, its footnotes among them, its rows in order of one of all its columns."""
    keys = [column.key for column in table.columns]
    places = {key: number for number, key in enumerate(keys)}
    rows = table.rows
    if sort is not None:
        known_column(sort.removeprefix("-"), keys, "--sort")
        rows = tuple(in_order(rows, sort, lambda row, name: row[places[name]].value))
    if columns:
        wanted = [places[known_column(name, keys, "--columns")] for name in columns if name != FLAGS.key]
        wanted += [places[FLAGS.key]] if FLAGS.key in places else []
        table = replace(table, columns=tuple(table.columns[number] for number in wanted))
        rows = tuple(tuple(row[number] for number in wanted) for row in rows)
    return renumbered(replace(table, rows=rows))


def renumbered(table: TextTable) -> TextTable:
    """The table with those footnotes alone that a cell of it names, numbered in the order of the cells."""
    order = list(dict.fromkeys(note for row in table.rows for cell in row for note in cell.notes))
    new = {old: number for number, old in enumerate(order, 1)}
    rows = tuple(
        tuple(replace(cell, notes=tuple(sorted(new[note] for note in cell.notes))) for cell in row)
        for row in table.rows
    )
    return replace(table, rows=rows, notes=tuple(table.notes[old - 1] for old in order))
