"""Throughput by batch, and by threads: a line a rung."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from kdbench.report.plots.axes import across_for, count_axis, grouped, log_axis, new_panels, where
from kdbench.report.plots.labels import Label, name_ends
from kdbench.report.plots.plot import Plot
from kdbench.report.plots.style import BLACK, LINES, doubts_note, headline, hover, marked, rungs_of, sign
from kdbench.report.plots.timing import Timed, timed
from kdbench.report.table import Ladder
from kdbench.report.text import count, shortened

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class By:
    """What throughput is drawn by."""

    name: str
    of: Callable[[Timed], int]
    rest: Callable[[Timed], Any]
    """What cells of one panel share."""


BYS = {
    "batch": By("batch", lambda c: c.row.batch, lambda c: (c.row.backend, c.row.threads, c.row.dims)),
    "threads": By("threads", lambda c: c.row.threads, lambda c: (c.row.backend, c.row.batch, c.row.dims)),
}


def plots(ladder: Ladder, suffix: str = "") -> list[Plot]:
    """By batch and by threads, as far as there are several of them."""
    cells = timed(ladder)
    found = []
    for by in BYS.values():
        panels = [panel for panel in grouped(cells, by.rest).values() if len({by.of(cell) for cell in panel}) > 1]
        if panels:
            fastest = max((cell for panel in panels for cell in panel), key=lambda cell: cell.throughput.value)
            found.append(
                Plot(
                    f"throughput-{by.name}{suffix}",
                    f"{headline(ladder)}: throughput by {by.name}",
                    f"Line plot of samples a second by {by.name}, a line a rung. The most: {fastest.row.rung}, "
                    f"{count(fastest.throughput.value)} samples a second on {where(fastest.row)}.",
                    functools.partial(_draw, ladder, by, panels),
                )
            )
    return found


def _draw(ladder: Ladder, by: By, panels: Sequence[Sequence[Timed]]) -> Figure:
    rows = [panel[0].row for panel in panels]
    figure, axes = new_panels(
        [where(row, by.name != "batch", by.name != "threads") for row in rows],
        f"{headline(ladder)}: throughput by {by.name}",
        "Bars: 95 %, by process." + doubts_note(cell.row for panel in panels for cell in panel),
        across_for([((row.backend, row.dims), row.batch if by.name == "threads" else row.threads) for row in rows]),
    )
    order = rungs_of(ladder)
    short = shortened(order)
    shown: list[tuple[Any, list[Label]]] = []
    signs: dict[str, Artist] = {}
    for axis, panel in zip(axes, panels, strict=False):
        ends = []
        for rung, cells in grouped(panel, lambda cell: cell.row.rung).items():
            line = sorted(cells, key=by.of)
            signs.setdefault(short[rung], _line(axis, by, line, order.index(rung)))
            ends.append(
                Label(by.of(line[-1]), line[-1].throughput.value, marked(short[rung], [cell.row for cell in cells]))
            )
        count_axis(axis.xaxis, [by.of(cell) for cell in panel])
        axis.set_xlabel(f"{by.name} (log scale)")
        shown.append((axis, ends))
        if axis.get_subplotspec().is_first_col():
            axis.set_ylabel("samples a second (log scale)")
    limits = [end for panel in panels for cell in panel for end in (cell.throughput.low, cell.throughput.high)]
    log_axis(axes[0].yaxis, limits, count)
    name_ends(figure, shown, signs)
    return figure


def _line(axis: Any, by: By, cells: Sequence[Timed], number: int) -> Artist:
    colour, marker = sign(number)
    style: dict[str, Any] = {"color": colour, "linestyle": LINES[number % len(LINES)], "linewidth": 1.2}
    look = {"marker": marker, "markersize": 6, "markeredgecolor": BLACK, "markeredgewidth": 0.5}
    x = [by.of(cell) for cell in cells]
    handle: Artist = axis.plot(x, [cell.throughput.value for cell in cells], zorder=2, **style, **look)[0]
    for place, cell in zip(x, cells, strict=True):
        found = cell.throughput
        reach = [[found.value - found.low], [found.high - found.value]]
        drawn = axis.errorbar(place, found.value, yerr=reach, color=colour, capsize=2.5, elinewidth=1.1, **look)
        hover(
            drawn.lines[0],
            f"{cell.row.rung}\n{where(cell.row)}\n{count(found.value)} samples a second "
            f"[{count(found.low)}, {count(found.high)}]",
        )
    return handle
