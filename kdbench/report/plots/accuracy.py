"""Accuracy, or what the task has in its place, against latency, file size, and multiply-accumulates or parameters."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from kdbench.report.plots.axes import across_for, grouped, log_axis, new_panels, where
from kdbench.report.plots.labels import Bar, Label, name_points
from kdbench.report.plots.pareto import Point, Standing, front_line, standings
from kdbench.report.plots.plot import Plot
from kdbench.report.plots.style import BLACK, PAPER, doubts_note, headline, hover, marked, rungs_of, sign
from kdbench.report.plots.timing import Timed, timed
from kdbench.report.rows import Metric, Row, place
from kdbench.report.table import Ladder
from kdbench.report.text import count, percent, points, seconds, shortened, size
from kdbench.stats import Interval

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.figure import Figure

FILLS: dict[Standing, str] = {"on": "full", "maybe": "left", "off": "none"}
SAID: dict[Standing, str] = {
    "on": "on the Pareto front",
    "maybe": "may be on the Pareto front",
    "off": "not on the Pareto front",
}


@dataclass(frozen=True)
class Cost:
    """What accuracy is drawn against."""

    name: str
    show: Callable[[float], str]
    of: Callable[[Timed | Row], Interval | None]
    each_batch: bool = False
    """Whether it differs from batch to batch, and from one thread count to the next."""


def _exactly(value: float | None) -> Interval | None:
    return Interval(value, value, value) if value else None


COSTS: dict[str, Cost] = {
    "latency": Cost("median latency", seconds, lambda cell: cell.latency if isinstance(cell, Timed) else None, True),
    "size": Cost("file size", size, lambda cell: _exactly(_row(cell).size_bytes)),
    "macs": Cost("multiply-accumulates", count, lambda cell: _exactly(_row(cell).macs)),
    "parameters": Cost("parameters", count, lambda cell: _exactly(_row(cell).parameters)),
}


@dataclass(frozen=True)
class Spot:
    """A rung in a panel."""

    row: Row
    point: Point


def plots(ladder: Ladder, suffix: str = "") -> list[Plot]:
    """Against latency and size; against MACs, or parameters where these aren't known, of three networks or more."""
    judged = [row for row in ladder.rows if _share(ladder, row) is not None]
    found = [_plot(ladder, "latency", timed(ladder), suffix), _plot(ladder, "size", judged, suffix)]
    for name in ("macs", "parameters"):
        numbers = {getattr(row, name) for row in judged}
        if None not in numbers and _different(numbers) >= 3:  # of fewer, the sizes tell as much
            found.append(_plot(ladder, name, judged, suffix))
            break
    return [plot for plot in found if plot]


def _different(numbers: set[int]) -> int:
    """How many there are that are more than a tenth from the next one."""
    ordered = sorted(numbers)
    return bool(ordered) + sum(after > 1.1 * before for before, after in pairwise(ordered))


def _plot(ladder: Ladder, name: str, cells: Sequence[Timed | Row], suffix: str) -> Plot | None:
    cost = COSTS[name]
    spots = [
        Spot(_row(cell), Point(found, _gain(ladder, _row(cell), share)))
        for cell in cells
        if (share := _share(ladder, _row(cell))) is not None and (found := cost.of(cell)) is not None
    ]
    if not spots:
        return None
    if not cost.each_batch:  # the same in all batches, and with all threads, of a backend
        spots = list({(spot.row.rung, spot.row.backend): spot for spot in reversed(spots)}.values())[::-1]
    metric = metric_of(ladder)
    return Plot(
        f"accuracy-{name}{suffix}",
        f"{headline(ladder)}: {metric} against {cost.name}",
        _alt(metric, cost, spots),
        functools.partial(_draw, ladder, cost, spots),
    )


def _alt(metric: str, cost: Cost, spots: Sequence[Spot]) -> str:
    """Of the first panel, the rungs of the front in words."""
    panel = next(iter(grouped(spots, _place(cost)).values()))
    on = [s for s, how in zip(panel, standings([s.point for s in panel]), strict=True) if how == "on"]
    told = ", ".join(
        f"{spot.row.rung} ({percent(spot.point.gain.value)} at {cost.show(spot.point.cost.value)})"
        for spot in sorted(on, key=lambda spot: spot.point.cost.value)
    )
    said = where(panel[0].row, cost.each_batch, cost.each_batch)
    return f"Scatter plot of {metric} against {cost.name}. On the Pareto front of {said}: {told}."


def metric_of(ladder: Ladder) -> str:
    agreement = f"agreement with {ladder.result.baseline}"
    return {"accuracy": "accuracy", "f1": "micro F1", "agreement": agreement}[ladder.metric]


def _row(cell: Timed | Row) -> Row:
    return cell.row if isinstance(cell, Timed) else cell


def _share(ladder: Ladder, row: Row) -> float | None:
    """What is drawn. Where that is agreement with the baseline, the baseline agrees with itself."""
    shares: dict[Metric, float | None] = {"accuracy": row.accuracy, "f1": row.f1_micro, "agreement": row.agreement}
    if ladder.metric == "agreement" and row.rung == ladder.result.baseline:
        return 1.0
    return shares[ladder.metric]


def _gain(ladder: Ladder, row: Row, share: float) -> Interval:
    """The share with the interval of its paired difference to the baseline, as far as shares go."""
    found = row.difference if ladder.metric != "agreement" else None
    if found is None:
        return Interval(share, share, share)
    low, high = share + found.low - found.value, share + found.high - found.value
    return Interval(share, min(share, max(low, 0.0)), max(share, min(high, 1.0)))


def _place(cost: Cost) -> Callable[[Spot], Any]:
    return lambda spot: place(spot.row) if cost.each_batch else spot.row.backend


def _draw(ladder: Ladder, cost: Cost, spots: Sequence[Spot]) -> Figure:
    panels = list(grouped(spots, _place(cost)).values())
    rows = [panel[0].row for panel in panels]
    metric, short, order = metric_of(ladder), shortened(rungs_of(ladder)), rungs_of(ladder)
    figure, axes = new_panels(
        [where(row, cost.each_batch, cost.each_batch) for row in rows],
        f"{headline(ladder)}: {metric} against {cost.name}",
        _note(ladder, cost, panels),
        across_for([((row.backend, row.threads, row.dims), row.batch) for row in rows]),
    )
    shown: list[tuple[Any, list[Label], list[Bar]]] = []
    signs: dict[str, Artist] = {}
    for axis, panel in zip(axes, panels, strict=False):
        held = [spot.point for spot in panel]
        log_axis(axis.xaxis, [end for p in held for end in (p.cost.low, p.cost.high)], cost.show, room=0.2)
        axis.set_xlabel(f"{cost.name} (log scale)")
        labels: list[Label] = []
        bars: list[Bar] = []
        for spot, standing in zip(panel, standings(held), strict=True):
            handle = _spot(axis, ladder, cost, spot, standing, sign(order.index(spot.row.rung)))
            signs.setdefault(short[spot.row.rung], handle)
            x, y = spot.point.cost, spot.point.gain
            labels.append(Label(x.value, 100 * y.value, marked(short[spot.row.rung], [spot.row])))
            bars += [(x.low, 100 * y.value, x.high, 100 * y.value), (x.value, 100 * y.low, x.value, 100 * y.high)]
        shown.append((axis, labels, bars))
    low = min(spot.point.gain.low for spot in spots)
    high = max(spot.point.gain.high for spot in spots)
    room = max(0.15 * (high - low), 0.004)
    axes[0].set_ylim(100 * (low - room), 100 * (high + room))
    for (axis, _, bars), panel in zip(shown, panels, strict=False):
        if axis.get_subplotspec().is_first_col():
            axis.set_ylabel(f"{metric}, %")
        bars += _front(axis, [spot.point for spot in panel])
    name_points(figure, shown, signs)
    return figure


def _note(ladder: Ladder, cost: Cost, panels: Sequence[Sequence[Spot]]) -> str:
    """What bars, fills, signs and the line mean, of those that are there."""
    said = []
    held = [spot.point for panel in panels for spot in panel]
    if any(point.gain.high > point.gain.low for point in held):
        said.append(f"Vertical bars: 95 % of the difference to {ladder.result.baseline}.")
    if any(point.cost.high > point.cost.low for point in held):
        said.append("Horizontal bars: 95 % of the median, by process.")
    kinds = {kind for panel in panels for kind in standings([spot.point for spot in panel])}
    fills = {"on": "filled: on it", "maybe": "half filled: may be on it", "off": "hollow: not on it"}
    said.append(f"Dashed: Pareto front; {', '.join(fills[kind] for kind in SAID if kind in kinds)}.")
    return " ".join(said) + doubts_note(spot.row for panel in panels for spot in panel)


def _spot(axis: Any, ladder: Ladder, cost: Cost, spot: Spot, standing: Standing, look: tuple[str, str]) -> Artist:
    """Marker and bars; the marker."""
    x, y = spot.point.cost, spot.point.gain
    colour, marker = look
    drawn = axis.errorbar(
        x.value,
        100 * y.value,
        xerr=[[x.value - x.low], [x.high - x.value]] if x.high > x.low else None,
        yerr=[[100 * (y.value - y.low)], [100 * (y.high - y.value)]] if y.high > y.low else None,
        linestyle="none",
        color=colour,
        elinewidth=1.1,
        capsize=2.5,
        marker=marker,
        markersize=8.5,
        fillstyle=FILLS[standing],
        markerfacecolor=colour,
        markerfacecoloralt=PAPER,
        markeredgecolor=BLACK if standing != "off" else colour,
        markeredgewidth=0.7 if standing != "off" else 1.3,
    )
    lines = [spot.row.rung, f"{metric_of(ladder)}: {percent(y.value)}"]
    if spot.row.difference:
        lines.append(f"difference to {ladder.result.baseline}: {points(spot.row.difference)} points")
    lines.append(f"{cost.name}: {cost.show(x.value)}")
    if x.high > x.low:
        lines[-1] += f" [{cost.show(x.low)}, {cost.show(x.high)}]"
    hover(drawn.lines[0], "\n".join([*lines, SAID[standing], *spot.row.broken_claims]))
    marker_line: Artist = drawn.lines[0]
    return marker_line


def _front(axis: Any, held: Sequence[Point]) -> list[Bar]:
    """What can be had at each cost, as stairs that go on beyond the panel; their steps."""
    line = front_line(held)
    corners = [(line[0][0], axis.get_ylim()[0])]
    for cost, gain in line:
        corners += [(cost, corners[-1][1]), (cost, 100 * gain)]
    corners.append((axis.get_xlim()[1], corners[-1][1]))
    axis.plot(*zip(*corners, strict=True), color=BLACK, linestyle=(0, (4, 3)), linewidth=0.8, zorder=1)
    return [(*start, *end) for start, end in pairwise(corners)]
