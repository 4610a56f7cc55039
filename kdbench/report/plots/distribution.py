"""How latencies are distributed: a row a rung, a bar for each of its processes."""

from __future__ import annotations

import functools
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from kdbench.report.plots.axes import across_for, grouped, log_axis, new_panels, where
from kdbench.report.plots.plot import Plot
from kdbench.report.plots.style import BLACK, headline, hover, rungs_of, sign
from kdbench.report.plots.timing import timed
from kdbench.report.scenarios import load_of
from kdbench.report.table import Ladder
from kdbench.report.text import seconds, shortened

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MOST_PROCESSES = 12
"""Of a rung, spread evenly over the rounds: more can't be told apart."""
SHARES = (5, 25, 50, 75, 95)
"""Percentiles that a bar shows."""


@dataclass(frozen=True)
class Cell:
    rung: str
    where: str
    """The title of its panel."""
    across: tuple[Hashable, Hashable]
    """What tells its panel from others."""
    processes: Mapping[int, NDArray[Any]]
    """Latencies in seconds, by round."""

    def shares(self) -> NDArray[np.float64]:
        """Percentiles [processes, `SHARES`], in seconds."""
        return np.array([np.percentile(own, SHARES) for own in self.processes.values()])


def plots(ladder: Ladder, suffix: str = "") -> list[Plot]:
    """Of calls, or of queries where scenarios were measured; of those offline there is one only."""
    cells = [*_calls(ladder), *_queries(ladder)]
    if not cells:
        return []
    widest = max(cells, key=lambda cell: float(np.ptp(np.log(cell.shares()[:, 2]))))
    medians = widest.shares()[:, 2]
    return [
        Plot(
            f"latency-distribution{suffix}",
            f"{headline(ladder)}: latencies by process",
            "Bars from the 5th to the 95th percentile of each process's latencies, a row a rung. The medians of "
            f"{widest.rung}'s processes on {widest.where} differ most: from {seconds(medians.min())} to "
            f"{seconds(medians.max())}.",
            functools.partial(_draw, ladder, cells),
        )
    ]


def _calls(ladder: Ladder) -> list[Cell]:
    return [
        Cell(
            cell.row.rung,
            where(cell.row),
            ((cell.row.backend, cell.row.threads, cell.row.dims), cell.row.batch),
            cell.processes,
        )
        for cell in timed(ladder)
    ]


def _queries(ladder: Ladder) -> list[Cell]:
    measurements = {(m.rung, *load_of(m)): m for m in ladder.result.scenarios}
    found = []
    for row in ladder.scenarios:
        m = measurements[row.rung, *load_of(row)]
        if m.raw is None or m.error is not None or m.scenario == "offline":
            continue
        latencies = ladder.arrays[f"scenarios.{m.raw}"].astype(np.float64)
        rounds = ladder.arrays[f"scenario_rounds.{m.raw}"]
        processes = {int(number): latencies[rounds == number] for number in np.unique(rounds)}
        _, *place = load_of(row)
        title = f"{row.scenario.replace('_', ' ')} on {row.backend}, batch {row.batch}, threads {row.threads}"
        if row.sessions > 1:
            title += f", {row.sessions} sessions"
        found.append(
            Cell(row.rung, f"{title}, {row.dims}" if row.dims else title, (tuple(place), row.scenario), processes)
        )
    return found


def _draw(ladder: Ladder, cells: Sequence[Cell]) -> Figure:
    panels = list(grouped(cells, lambda cell: cell.across).values())
    most = max(len(cell.processes) for cell in cells)
    figure, axes = new_panels(
        [panel[0].where for panel in panels],
        f"{headline(ladder)}: latencies by process",
        "A bar a process: half of its runs lie in the thick part, nine of ten in the whole, the median at the tick."
        + (f" {MOST_PROCESSES} of up to {most} processes are shown." if most > MOST_PROCESSES else ""),
        across_for([panel[0].across for panel in panels]),
        height=0.9 + 0.34 * max(len(panel) for panel in panels),
        sharey=False,
    )
    order = rungs_of(ladder)
    short = shortened(order)
    for axis, panel in zip(axes, panels, strict=False):
        ends = [end for height, cell in enumerate(panel) for end in _row(axis, cell, height, order.index(cell.rung))]
        log_axis(axis.xaxis, ends, seconds, room=0.05)
        axis.set_yticks(range(len(panel)), [short[cell.rung] for cell in panel])
        axis.set_ylim(len(panel) - 0.5, -0.5)
        axis.grid(False, axis="y")
        axis.set_xlabel("latency (log scale)")
    return figure


def _row(axis: Any, cell: Cell, height: int, number: int) -> tuple[float, float]:
    """The bars of a rung's processes, one below the other; the limits of all of them."""
    colour, _ = sign(number)
    rounds = list(cell.processes)
    chosen = np.unique(np.linspace(0, len(rounds) - 1, min(len(rounds), MOST_PROCESSES)).round().astype(int))
    shares = cell.shares()[chosen]
    step = 0.8 / len(chosen)
    thick = min(72 * 0.34 * step * 0.75, 5.0)
    for below, (number, (low, quarter, median, three, high)) in enumerate(zip(chosen, shares, strict=True)):
        y = height + (below - (len(chosen) - 1) / 2) * step
        axis.plot([low, high], [y, y], color=colour, linewidth=0.8, solid_capstyle="butt", zorder=2)
        (bar,) = axis.plot([quarter, three], [y, y], color=colour, linewidth=thick, solid_capstyle="butt", zorder=3)
        axis.plot(median, y, color=BLACK, marker="|", markersize=thick + 2.5, markeredgewidth=1.1, zorder=4)
        hover(
            bar,
            f"{cell.rung}, process {rounds[number] + 1} of {len(rounds)}\nmedian {seconds(median)}\n"
            f"half of its {len(cell.processes[rounds[number]]):,} runs: {seconds(quarter)} to {seconds(three)}\n"
            f"nine of ten: {seconds(low)} to {seconds(high)}",
        )
    return float(shares[:, 0].min()), float(shares[:, -1].max())
