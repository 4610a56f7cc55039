"""Results as data frames."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, TypeVar

from kdbench.errors import UserError
from kdbench.report.rendering import Asked, find, lines_of
from kdbench.report.selection import Selection
from kdbench.store import Paths, paths_of

if TYPE_CHECKING:
    import pandas as pd

TEXTS = ("rung", "parent", "error", "ran_as", "dims", "flags", "broken_claims", "method", "best", "table")
"""Columns that hold no numbers, though all that they hold may be nothing."""


Name = TypeVar("Name", str, int)


def load_results(
    *paths: Paths,
    view: str | None = None,
    columns: str | Sequence[str] = (),
    sort: str | None = None,
    baseline: str | None = None,
    measure: str = "latency",
    rungs: str | Sequence[str] = (),
    backends: str | Sequence[str] = (),
    batches: int | Sequence[int] = (),
    threads: int | Sequence[int] = (),
) -> "pd.DataFrame":
    """What `kdbench report --format csv` prints, as a data frame: the same columns, plain numbers in SI units.

    Of the `ladder` a row is a cell, with several result files its rung led by machine and file; of `backends`,
    `methods` and `scaling` it is a row of a table, whose title is in the column `table`. Without a view it is that of
    the methods where all paths are comparisons, else the ladder's. `columns` are some of the columns, `sort` is one of
    them, `-` before it for the largest first, and `baseline` the rung that others are compared with; of `backends` one
    `measure` is shown: latency, throughput, speed-up or accuracy. Cells are chosen by rungs, backends, batches and
    threads, one or several. Statistics are computed from raw values, ratios within a file only.

    Needs pandas. Raises UserError where that is missing, for files that can't be read, for names that are none of the
    known, and for a selection without any cell.
    """
    try:
        import pandas as pd
    except ImportError:
        raise UserError("data frames need pandas: pip install pandas") from None
    selection = Selection(_several(rungs), _several(backends), _several(batches), _several(threads))
    asked = Asked(view, _several(columns), sort, baseline, measure, selection)
    names, lines = lines_of(find(paths_of(*paths), asked))
    frame = pd.DataFrame.from_records([dict(zip(names, line, strict=True)) for line in lines], columns=list(names))
    empty = [name for name in names if name not in TEXTS and frame[name].isna().all()]
    return frame.astype(dict.fromkeys(empty, float))


def _several(given: Name | Sequence[Name]) -> tuple[Name, ...]:
    """One name or number may be given by itself."""
    return (given,) if isinstance(given, str | int) else tuple(given)
