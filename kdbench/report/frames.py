"""Results as data frames."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from kdbench.errors import UserError
from kdbench.report.rendering import Asked, find, lines_of
from kdbench.report.selection import Selection

if TYPE_CHECKING:
    import pandas as pd


def load_results(
    *paths: str | Path,
    view: str | None = None,
    columns: Sequence[str] = (),
    sort: str | None = None,
    baseline: str | None = None,
    measure: str = "latency",
    rungs: Sequence[str] = (),
    backends: Sequence[str] = (),
    batches: Sequence[int] = (),
    threads: Sequence[int] = (),
) -> "pd.DataFrame":
    """What `kdbench report --format csv` prints, as a data frame: the same columns, plain numbers in SI units.

    Of the `ladder` a row is a cell, with several result files its rung led by machine and file; of `backends`,
    `methods` and `scaling` it is a row of a table, whose title is in the column `table`. Without a view it is that of
    the methods where all paths are comparisons, else the ladder's. `columns` are some of the columns, `sort` is one of
    them, `-` before it for the largest first, and `baseline` the rung that others are compared with; of `backends` one
    `measure` is shown: latency, throughput, speed-up or accuracy. Cells are chosen by rungs, backends, batches and
    threads. Statistics are computed from raw values, ratios within a file only.

    Needs pandas. Raises UserError where that is missing, for files that can't be read, for names that are none of the
    known, and for a selection without any cell.
    """
    try:
        import pandas as pd
    except ImportError:
        raise UserError("data frames need pandas: pip install 'kdbench[frames]'") from None
    selection = Selection(tuple(rungs), tuple(backends), tuple(batches), tuple(threads))
    asked = Asked(view, tuple(columns), sort, baseline, measure, selection)
    names, lines = lines_of(find(paths, asked))
    return pd.DataFrame.from_records([dict(zip(names, line, strict=True)) for line in lines], columns=list(names))
