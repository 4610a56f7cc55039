"""Which plots results and a run folder have something to show for."""

import re
from collections.abc import Sequence

from kdbench.report.plots import accuracy, distribution, sensitivity, throughput, training
from kdbench.report.plots.plot import Plot
from kdbench.report.plots.style import rungs_of
from kdbench.report.table import Ladder
from kdbench.store import RunFolder


def of_ladder(plots: Sequence[Plot], number: int) -> list[Plot]:
    """Those of a result file, by its number from 1; with the first those of the run folder."""
    numbers = [re.search(r"-(\d+)$", plot.name) for plot in plots]
    return [plot for plot, found in zip(plots, numbers, strict=True) if int(found[1] if found else 1) == number]


def plots_of(ladders: Sequence[Ladder], run: RunFolder | None = None) -> list[Plot]:
    """Those of each result file, in the order of the files, then those of the run folder.

    Numbers of different files never share a plot: names of the second file's end with `-2`.
    """
    found = [
        plot
        for number, ladder in enumerate(ladders, 1)
        for kind in (accuracy, throughput, distribution)
        for plot in kind.plots(ladder, f"-{number}" if number > 1 else "")
    ]
    if run is None:
        return found
    known = rungs_of(ladders[0]) if len(ladders) == 1 else ()
    return [*found, *training.plots(run, known), *sensitivity.plots_in(run)]
