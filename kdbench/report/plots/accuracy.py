"""Accuracy, or what the task has in its place, against latency: a panel for each backend, thread count and batch."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from itertools import groupby
from typing import TYPE_CHECKING

from kdbench.report.plots.plot import Plot
from kdbench.report.plots.style import hover, log_ticks, new_figure, sign
from kdbench.report.rows import Metric, Row, place
from kdbench.report.table import Ladder
from kdbench.report.text import percent, points, seconds

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def plots(ladder: Ladder, suffix: str = "") -> list[Plot]:
    """Nothing where no cell has both numbers."""
    rows = [row for row in ladder.rows if _height(ladder, row) is not None and row.latency_p50_s is not None]
    if not rows:
        return []
    name = ladder.result.name
    return [
        Plot(
            f"accuracy-latency{suffix}",
            f"{name}: {_metric(ladder)} against latency",
            f"{_metric(ladder)} of {len({row.rung for row in rows})} rungs of {name} against their median latency",
            functools.partial(_draw, ladder, rows),
        )
    ]


def _metric(ladder: Ladder) -> str:
    agreement = f"agreement with {ladder.result.baseline}"
    return {"accuracy": "accuracy", "f1": "micro F1", "agreement": agreement}[ladder.metric]


def _height(ladder: Ladder, row: Row) -> float | None:
    """The share that is drawn. Where that is agreement with the baseline, the baseline agrees with itself."""
    shares: dict[Metric, float | None] = {"accuracy": row.accuracy, "f1": row.f1_micro, "agreement": row.agreement}
    if ladder.metric == "agreement" and row.rung == ladder.result.baseline:
        return 1.0
    return shares[ladder.metric]


def _draw(ladder: Ladder, rows: Sequence[Row]) -> Figure:
    panels = [list(group) for _, group in groupby(rows, key=place)]
    rungs = list(dict.fromkeys(row.rung for row in rows))
    figure = new_figure(1.5 + 4.0 * len(panels), 3.9)
    axes = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
    handles = {}
    for axis, panel in zip(axes, panels, strict=True):
        for row in panel:
            share = _height(ladder, row)
            assert row.latency_p50_s is not None and share is not None
            colour, marker = sign(rungs.index(row.rung))
            x, y = row.latency_p50_s * 1e3, 100 * share
            shown = {"linestyle": "none", "markersize": 9, "alpha": 0.85, "color": colour, "marker": marker}
            bars = axis.errorbar(x, y, yerr=_bar(row), capsize=3, **shown)
            hover(bars.lines[0], _said(ladder, row, share))
            handles[row.rung] = bars
        axis.set_xscale("log")
        log_ticks(axis.xaxis, *axis.get_xlim())
        axis.grid(True, alpha=0.3)
        backend, threads, batch, dims = place(panel[0])
        axis.set_title(f"{backend}, threads {threads}, batch {batch}{f', {dims}' if dims else ''}", fontsize=10)
        axis.set_xlabel("median latency, ms (log scale)")
    baseline = ladder.result.baseline
    axes[0].set_ylabel(f"{_metric(ladder)}, %")
    figure.legend(handles.values(), handles.keys(), loc="outside right upper", frameon=False)
    bars = "" if ladder.metric == "agreement" else f" (bars: 95 % of its difference to {baseline})"
    figure.suptitle(f"{ladder.result.name}: {_metric(ladder)}{bars} against latency", fontsize=11)
    return figure


def _said(ladder: Ladder, row: Row, share: float) -> str:
    """What is shown on hover."""
    lines = [row.rung, f"{_metric(ladder)}: {percent(share)}", f"latency: {seconds(row.latency_p50_s)}"]
    if row.difference:
        lines.insert(2, f"difference to {ladder.result.baseline}: {points(row.difference)} points")
    return "\n".join(lines)


def _bar(row: Row) -> tuple[list[float], list[float]] | None:
    """Points below and above the accuracy or F1 that the interval of its paired difference reaches."""
    found = row.difference
    if found is None:
        return None
    below, above = found.value - found.low, found.high - found.value
    return [100 * max(below, 0.0)], [100 * max(above, 0.0)]
