"""A report as files: Markdown, CSV and plots in one folder."""

from collections.abc import Sequence
from pathlib import Path

from kdbench.report.comma import to_csv
from kdbench.report.markdown import to_markdown
from kdbench.report.plot import save_plot
from kdbench.report.table import Ladder, Row
from kdbench.store import prepare_folder, write_atomic


def save_report(ladders: Sequence[Ladder], rows: Sequence[Row], folder: Path) -> list[Path]:
    """Writes `report.md`, `report.csv` and a plot for each ladder whose answers are judged; the paths, report first."""
    prepare_folder(folder)
    plots = [save_plot(ladder, folder, f"-{number}" if number > 1 else "") for number, ladder in enumerate(ladders, 1)]
    report, csv = folder / "report.md", folder / "report.csv"
    write_atomic(report, to_markdown(ladders, [paths[0].name if paths else None for paths in plots]))
    write_atomic(csv, to_csv(rows))
    return [report, *(path for paths in plots for path in paths), csv]
