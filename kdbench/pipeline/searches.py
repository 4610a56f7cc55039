"""What a search for an int8 file leaves on disk beside it, or where it would be: its record and its figure."""

from pathlib import Path

from kdbench.records.budget import Budget
from kdbench.report.plots import KINDS, save_plots
from kdbench.report.plots.sensitivity import RECORD, plots
from kdbench.store import write_atomic


def failed(out: Path) -> Path:
    """What a search is named after that made no `out`: one from before may lie there, with its own record."""
    return out.with_stem(f"{out.stem}-failed")


def save_search(out: Path, budget: Budget) -> tuple[Path, tuple[Path, ...]]:
    """The paths of the record and of the figure's files, in the place of those of an earlier search."""
    forget_search(out)
    record = out.with_name(out.stem + RECORD)
    write_atomic(record, budget.to_json())
    return record, tuple(save_plots(plots(budget, f"{out.stem}-budget"), out.parent))


def forget_search(out: Path) -> None:
    """Removes them, if there are any."""
    for left in (out.with_name(out.stem + RECORD), *(out.with_name(f"{out.stem}-budget.{kind}") for kind in KINDS)):
        left.unlink(missing_ok=True)
