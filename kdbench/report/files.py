"""A report as files: Markdown, CSV and plots in one folder."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from kdbench.report.comma import to_csv
from kdbench.report.markdown import to_markdown
from kdbench.report.plots import plots_of, save_plots
from kdbench.report.rows import Row
from kdbench.report.scenarios import COLUMNS, ScenarioRow
from kdbench.report.table import Ladder
from kdbench.store import prepare_folder, write_atomic


def save_report(ladders: Sequence[Ladder], rows: Sequence[Row], folder: Path) -> list[Path]:
    """Writes `report.md`, `report.csv` and a plot for each ladder whose answers are judged; the paths, report first.

    Scenarios have a `scenarios.csv` of their own; of the two, the one without rows is left out.
    """
    prepare_folder(folder)
    plots = save_plots(plots_of(ladders), folder)
    report, csv, load_csv = folder / "report.md", folder / "report.csv", folder / "scenarios.csv"
    write_atomic(report, to_markdown(ladders, [_plot_of(plots, number) for number in range(1, len(ladders) + 1)]))
    loads = load_rows(ladders)
    tables = {load_csv: to_csv(loads, COLUMNS)} if loads else {}
    if rows or not loads:
        tables[csv] = to_csv(rows)
    for path in (load_csv, csv):
        if path in tables:
            write_atomic(path, tables[path])
        else:
            path.unlink(missing_ok=True)  # of an earlier measurement
    return [report, *plots, *tables]


def _plot_of(plots: Sequence[Path], number: int) -> str | None:
    """The file name of the plot of a ladder, by its number from 1."""
    wanted = f"accuracy-latency{f'-{number}' if number > 1 else ''}.svg"
    return next((path.name for path in plots if path.name == wanted), None)


def load_rows(ladders: Sequence[Ladder]) -> list[ScenarioRow]:
    """The scenarios of all ladders; with several of them, a rung's name is led by machine and ladder."""
    return [
        replace(row, rung=f"{ladder.result.machine.name}/{ladder.result.name}/{row.rung}") if len(ladders) > 1 else row
        for ladder in ladders
        for row in ladder.scenarios
    ]
