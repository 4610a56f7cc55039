"""Which plots results and a run folder have something to show for."""

from collections.abc import Sequence

from kdbench.report.plots import accuracy
from kdbench.report.plots.plot import Plot
from kdbench.report.table import Ladder
from kdbench.store import RunFolder


def plots_of(ladders: Sequence[Ladder], run: RunFolder | None = None) -> list[Plot]:
    """Those of each result file, in the order of the files, then those of the run folder.

    Numbers of different files never share a plot: names of the second file's end with `-2`.
    """
    return [
        plot
        for number, ladder in enumerate(ladders, 1)
        for plot in accuracy.plots(ladder, f"-{number}" if number > 1 else "")
    ]
