"""Results as text of any format: what is asked for, the results of it, and the writer that takes them."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from kdbench.errors import UserError, pick
from kdbench.report.comma import plain_values, tables_to_csv, to_csv
from kdbench.report.flat import Value, flattened
from kdbench.report.html import to_html
from kdbench.report.latex import to_latex
from kdbench.report.markdown import comparison_to_markdown, to_markdown, views_to_markdown
from kdbench.report.methods_view import Compared
from kdbench.report.page import to_page
from kdbench.report.plots import plots_of
from kdbench.report.rows import COLUMNS, Row
from kdbench.report.scenarios import COLUMNS as SCENARIO_COLUMNS
from kdbench.report.scenarios import ScenarioRow
from kdbench.report.selection import Selection, rebased, selected
from kdbench.report.structured import ladders_to_json, tables_to_json
from kdbench.report.table import Ladder, load_ladders, rows_of, scenario_rows_of
from kdbench.report.text import TextTable
from kdbench.report.views import VIEWS, ladders_in_order, tables_of
from kdbench.store import RunFolder, find_all, find_comparisons, load_comparison

FORMATS = ("md", "csv", "json", "latex", "html")
"""What `rendered` writes; the terminal prints."""


@dataclass(frozen=True)
class Asked:
    """Of results: which, how seen, and in which order."""

    view: str | None = None
    """None for the methods of comparisons, else for the ladder."""
    columns: tuple[str, ...] = ()
    sort: str | None = None
    baseline: str | None = None
    measure: str = "latency"
    selection: Selection = field(default_factory=Selection)


@dataclass(frozen=True)
class Found:
    """What was asked for: result files or comparisons of methods, as the view takes them."""

    asked: Asked
    view: str
    ladders: list[Ladder]
    comparisons: list[Compared]

    def tables(self, brief: bool = False, details: bool = True) -> list[TextTable]:
        asked = self.asked
        return tables_of(
            self.ladders,
            self.comparisons,
            self.view,
            columns=asked.columns,
            sort=asked.sort,
            baseline=asked.baseline,
            measure=asked.measure,
            brief=brief,
            details=details,
        )


def find(paths: Iterable[str | Path], asked: Asked) -> Found:
    """The results below the given files and folders, chosen and compared as asked for.

    Raises UserError where there are none, for a selection that holds none of them, and for what a view doesn't have.
    """
    named = [Path(path) for path in paths]
    compared = [path for path in named if find_comparisons(path) == [path]]
    alone = all(find_comparisons(file) == [file] for file in find_all(named))
    view = asked.view or ("methods" if alone else "ladder")
    pick(dict.fromkeys(VIEWS), view, "view")
    if view == "methods":
        if asked.selection:
            raise UserError("--rung, --backend, --batch and --threads choose cells: comparisons of methods have none")
        return Found(asked, view, [], [load_comparison(file) for path in named for file in _comparisons(path)])
    if compared:
        raise UserError(f"{compared[0]}: a comparison of methods: show it by itself, or by --view methods")
    ladders = selected([rebased(one, asked.baseline) for one in load_ladders(named)], asked.selection)
    if view == "ladder":
        ladders = ladders_in_order(ladders, asked.columns, asked.sort)
    return Found(asked, view, ladders, [])


def page_below(paths: Iterable[str | Path], asked: Asked) -> str:
    """All results and comparisons below the given files and folders as one page, which has every view."""
    if asked.view or asked.columns or asked.sort:
        raise UserError(
            "--format page: has every view and column, and is sorted there: leave --view, --columns, --sort"
        )
    named = [Path(path) for path in paths]
    files = find_all(named)
    compared = [file for file in files if find_comparisons(file) == [file]]
    if compared and (asked.selection or asked.baseline):
        raise UserError(f"{compared[0]}: a comparison of methods has no cells to choose: leave it out, or the options")
    ladders = [rebased(one, asked.baseline) for one in load_ladders([file for file in files if file not in compared])]
    ladders = selected(ladders, asked.selection) if ladders else []
    run = RunFolder(named[0]) if len(named) == 1 and named[0].is_dir() else None
    return to_page(ladders, [load_comparison(file) for file in compared], plots_of(ladders, run))


def _comparisons(path: Path) -> list[Path]:
    if not path.exists():
        raise UserError(f"{path}: no such file or folder")
    found = find_comparisons(path)
    if not found:
        raise UserError(f"{path}: no comparison of methods: `kdbench distill --seeds` writes comparison.json")
    return found


def rendered(found: Found, kind: str) -> str:
    """As Markdown, CSV, JSON, LaTeX or HTML."""
    ladder = found.view == "ladder"
    columns = found.asked.columns
    match kind:
        case "csv":
            return to_csv(*cells_of(found)) if ladder else tables_to_csv(found.tables())
        case "json":
            return ladders_to_json(found.ladders, columns) if ladder else tables_to_json(found.tables(), found.view)
        case "latex":
            return to_latex(found.tables(details=False))
        case "html":
            return to_html(found.tables())
        case _:
            return _markdown(found)


def _markdown(found: Found) -> str:
    asked = found.asked
    if found.view == "ladder":
        return to_markdown(found.ladders, columns=asked.columns)
    if found.view == "methods" and len(found.comparisons) == 1 and not asked.columns and asked.sort is None:
        return comparison_to_markdown(*found.comparisons[0])
    return views_to_markdown(found.tables())


def cells_of(found: Found) -> tuple[Sequence[Row | ScenarioRow], tuple[str, ...]]:
    """The ladder's rows and their columns: those asked for, flags and errors always, or all; scenarios where there is
    nothing else. Columns of scenarios alone are left out beside rows."""
    rows, loads = rows_of(found.ladders), scenario_rows_of(found.ladders)
    scenarios = bool(loads and not rows)
    asked, only_loads = found.asked.columns, set(SCENARIO_COLUMNS) - set(COLUMNS)
    wanted = [name for name in asked if scenarios or name not in only_loads]
    every = SCENARIO_COLUMNS if scenarios else COLUMNS
    return loads if scenarios else rows, tuple(dict.fromkeys((*wanted, "flags", "error"))) if asked else every


def lines_of(found: Found) -> tuple[Sequence[str], list[list[Value]]]:
    """What the CSV has: its columns, and a list for each of its rows."""
    if found.view != "ladder":
        return flattened(found.tables())
    rows, columns = cells_of(found)
    return columns, [plain_values(row, columns) for row in rows]
