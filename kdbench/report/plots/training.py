"""Training curves: loss and held-out score by epoch, of teacher and students; several seeds as a band."""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kdbench.report.plots.axes import log_axis, new_panels
from kdbench.report.plots.labels import Label, name_ends
from kdbench.report.plots.plot import Plot
from kdbench.report.plots.style import BLACK, LINES, hover, sign
from kdbench.report.text import percent, plain, shortened, three_digits
from kdbench.store import RunFolder

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.figure import Figure

Curves = Mapping[str, Sequence[Mapping[int, float]]]
"""Values by epoch, of each seed of each rung."""

END = ".metrics.jsonl"
MOST_MARKED = 12
"""Epochs of a line with a marker and a text on hover."""


def plots(run: RunFolder, known: Sequence[str] = ()) -> list[Plot]:
    """Nothing where nothing was trained for two epochs or more. Rungs have the sign of their place in `known`."""
    losses, scores = (_curves(run.path, name) for name in ("loss", "held_out"))
    if not losses:
        return []
    ends = {rung: [seed[max(seed)] for seed in seeds] for rung, seeds in (scores or losses).items()}
    show = percent if scores else three_digits
    told = ", ".join(f"{rung} {show(sum(last) / len(last))}" for rung, last in ends.items())
    return [
        Plot(
            "training-curves",
            f"{plain(run.path.resolve().name)}: training",
            f"Line plot by epoch. {'Score on held-out samples' if scores else 'Loss'} after the last one: {told}.",
            functools.partial(_draw, run.path.resolve().name, losses, scores, known),
        )
    ]


def _curves(folder: Path, name: str) -> Curves:
    """Of each rung, from the folder itself and from those of further seeds in it; finite values only."""
    found: dict[str, list[dict[int, float]]] = {}
    for path in [*sorted(folder.glob(f"*{END}")), *sorted(folder.glob(f"seed-*/*{END}"))]:
        values = {}
        for line in _lines(path):
            epoch, value = line.get("epoch"), line.get(name)
            if isinstance(epoch, int) and isinstance(value, int | float) and math.isfinite(value):
                values[epoch] = float(value)
        if len(values) > 1:
            found.setdefault(path.name.removesuffix(END), []).append(values)
    return found


def _lines(path: Path) -> list[dict[str, Any]]:
    """A JSON object an epoch; those that were cut off are left out."""
    found = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            entry = json.loads(line)
        except ValueError:
            continue
        if isinstance(entry, dict):
            found.append(entry)
    return found


def _draw(name: str, losses: Curves, scores: Curves, known: Sequence[str]) -> Figure:
    several = max(len(seeds) for curves in (losses, scores) for seeds in curves.values())
    note = "Each loss is that of its own training: a student's may be a sum of several."
    if several > 1:
        note += f" Bands: lowest to highest of up to {several} seeds, around their mean."
    titles = ["training loss", *(["score on held-out samples"] if scores else [])]
    figure, axes = new_panels(titles, f"{name}: training", note, sharey=False)
    order, signs = list(dict.fromkeys([*known, *losses])), dict[str, Any]()
    short = shortened(order)
    shown = []
    for axis, curves, scale in zip(axes, (losses, scores), (1.0, 100.0), strict=False):
        ends = []
        for rung, seeds in curves.items():
            handle, end = _curve(axis, rung, seeds, scale, order.index(rung))
            signs.setdefault(short[rung], handle)
            ends.append(Label(*end, short[rung]))
        axis.set_xlabel("epoch")
        axis.xaxis.get_major_locator().set_params(integer=True)
        shown.append((axis, ends))
    values = [value for seeds in losses.values() for seed in seeds for value in seed.values()]
    if min(values) > 0:
        log_axis(axes[0].yaxis, values, three_digits, room=0.05)
    axes[0].set_ylabel("loss (log scale)" if min(values) > 0 else "loss")
    if scores:
        axes[1].set_ylabel("score, %")
    name_ends(figure, shown, signs)
    return figure


def _curve(
    axis: Any, rung: str, seeds: Sequence[Mapping[int, float]], scale: float, number: int
) -> tuple[Artist, tuple[float, float]]:
    """The mean of the seeds that got so far, and their band; line and end."""
    colour, marker = sign(number)
    epochs = sorted({epoch for seed in seeds for epoch in seed})
    values = [[scale * seed[epoch] for seed in seeds if epoch in seed] for epoch in epochs]
    means = [sum(known) / len(known) for known in values]
    style: dict[str, Any] = {"color": colour, "linestyle": LINES[number % len(LINES)], "linewidth": 1.2}
    look = {"marker": marker, "markersize": 5, "markeredgecolor": BLACK, "markeredgewidth": 0.4}
    if len(seeds) > 1:
        axis.fill_between(
            epochs, [min(v) for v in values], [max(v) for v in values], color=colour, alpha=0.18, linewidth=0
        )
    every = math.ceil(len(epochs) / MOST_MARKED)
    (handle,) = axis.plot(epochs, means, markevery=(0, every), **style, **look)
    for epoch, mean, known in list(zip(epochs, means, values, strict=True))[::every]:
        (point,) = axis.plot(epoch, mean, linestyle="none", color=colour, **look)
        unit = " %" if scale != 1 else ""
        said = f"{rung}, epoch {epoch}: {three_digits(mean)}{unit}"
        if len(known) > 1:
            said += f"\nmean of {len(known)} seeds, {three_digits(min(known))} to {three_digits(max(known))}{unit}"
        hover(point, said)
    line: Artist = handle
    return line, (epochs[-1], means[-1])
