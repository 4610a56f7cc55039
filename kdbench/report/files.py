"""A report as files: Markdown, CSV, plots and the page in one folder."""

from collections.abc import Sequence
from pathlib import Path
from urllib.parse import quote

from kdbench.records.turns import SpiralRecord
from kdbench.report.comma import to_csv
from kdbench.report.markdown import to_markdown, turns_to_markdown
from kdbench.report.methods_view import Compared
from kdbench.report.page import to_page
from kdbench.report.plots import Plot, of_ladder, plots_of, remove_other_plots, save_plots
from kdbench.report.rows import Row
from kdbench.report.scenarios import COLUMNS
from kdbench.report.table import Ladder, scenario_rows_of
from kdbench.store import RunFolder, prepare_folder, write_atomic


def save_report(
    ladders: Sequence[Ladder],
    rows: Sequence[Row],
    folder: Path,
    run: RunFolder | None = None,
    comparisons: Sequence[Compared] = (),
) -> list[Path]:
    """Writes `report.md`, `report.html`, the plots of the ladders and of the run folder, and `report.csv`; their paths.

    The page alone has the comparisons.

    Scenarios have a `scenarios.csv` of their own; of the two, the one without rows is left out.
    """
    prepare_folder(folder)
    plots = plots_of(ladders, run)
    drawn = save_plots(plots, folder)
    remove_other_plots(folder, plots)
    report, page = folder / "report.md", folder / "report.html"
    csv, load_csv = folder / "report.csv", folder / "scenarios.csv"
    write_atomic(page, to_page(ladders, comparisons, plots))
    write_atomic(report, to_markdown(ladders, [_images(plots, number) for number in range(1, len(ladders) + 1)]))
    loads = scenario_rows_of(ladders)
    tables = {load_csv: to_csv(loads, COLUMNS)} if loads else {}
    if rows or not loads:
        tables[csv] = to_csv(rows)
    for path in (load_csv, csv):
        if path in tables:
            write_atomic(path, tables[path])
        else:
            path.unlink(missing_ok=True)  # of an earlier measurement
    return [report, page, *drawn, *tables]


def save_turns(record: SpiralRecord, folder: Path) -> Path:
    """Writes the table of a spiral's turns as Markdown; its path."""
    path = folder / "spiral.md"
    write_atomic(path, turns_to_markdown(record))
    return path


def _images(plots: Sequence[Plot], number: int) -> list[tuple[str, str]]:
    """Address and text of those of a ladder, by its number from 1; with the first those of the run folder."""
    return [(quote(f"{plot.name}.svg"), plot.alt) for plot in of_ladder(plots, number)]
