"""The trade-off between accuracy and layers in int8, and which layers make the noise: one figure for a search."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kdbench.records.base import from_json, read_text
from kdbench.records.budget import Budget, CandidateRecord, CurvePoint, LayerNoise
from kdbench.report.plots.labels import Bar, Label, name_points
from kdbench.report.plots.plot import Plot
from kdbench.report.plots.style import BLACK, hover, new_figure
from kdbench.report.text import count, plain, shortened
from kdbench.store import RunFolder

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MOST_LAYERS = 20
"""Bars that can be read; the least sensitive layers are left out."""

INT8, FLOAT = "#56B4E9", "#D55E00"
"""Of Okabe and Ito's palette; bars of layers in float are hatched too, for prints without colour."""

RECORD = ".budget.json"
"""How the name of a budget's file ends."""


def plots(budget: Budget, name: str) -> list[Plot]:
    """Of the candidate that was chosen, or else that came closest; nothing where all of its layers are in int8."""
    looked_at = [one for one in budget.candidates if one.layers and budget.chosen in (one.name, None)]
    if not looked_at:
        return []
    candidate = min(looked_at, key=_least)
    model, layers, left = plain(Path(budget.model).stem), len(candidate.layers), len(candidate.left_in_float)
    ended = f"of {layers} layers {left} stay in float" if budget.chosen else "with none in int8 is the budget kept"
    return [
        Plot(
            name,
            f"{model} in int8 on {budget.backend}: {candidate.name}",
            f"Left, what int8 costs with more and more layers in float; {ended}. "
            f"Right, the output noise of each layer alone in int8: {plain(candidate.layers[0].layer)} makes the most.",
            functools.partial(_draw, budget, candidate),
        )
    ]


def _least(candidate: CandidateRecord) -> float:
    """The smallest drop with a layer in int8."""
    return min(point.drop.value for point in candidate.curve if len(point.left_in_float) < len(candidate.layers))


def plots_in(run: RunFolder) -> list[Plot]:
    """Of each search whose record lies in the folder, named as `kdbench quantize` names it."""
    found = []
    for path in sorted(run.path.glob(f"*{RECORD}")):
        found += plots(from_json(Budget, read_text(path), str(path)), f"{path.name.removesuffix(RECORD)}-budget")
    return found


def _draw(budget: Budget, candidate: CandidateRecord) -> Figure:
    layers = candidate.layers[:MOST_LAYERS]
    figure = new_figure(
        10.0,
        max(3.9, 1.6 + 0.22 * len(layers)),
        f"{Path(budget.model).stem} in int8 on {budget.backend}: {candidate.name}",
        f"Left: bars 95 %; numbers: layers in float; {'square: chosen' if budget.chosen else 'nothing chosen'}"
        + ("." if budget.max_drop is None else "; dashed: the budget."),
    )
    curve, bars = figure.subplots(1, 2)
    labels, reaches = _curve(curve, budget, candidate)
    _bars(bars, candidate)
    name_points(figure, [(curve, labels, reaches)])
    return figure


def _curve(axis: Any, budget: Budget, candidate: CandidateRecord) -> tuple[list[Label], list[Bar]]:
    """Drop against the share of multiply-accumulates in int8, or against the layers in float where that isn't known.

    Returns the numbers at the points, and the lines that they keep away from.
    """
    held = sorted(candidate.curve, key=lambda point: len(point.left_in_float))
    shares = all(point.int8_macs is not None for point in held)
    what = "samples answered otherwise" if budget.metric == "agreement" else f"drop of {budget.metric}"
    unit = "%" if budget.metric == "agreement" else "points"
    x = [100 * (point.int8_macs or 0.0) if shares else float(len(point.left_in_float)) for point in held]
    for place, point in zip(x, held, strict=True):
        value, below, above = _reach(point)
        drawn = axis.errorbar(
            place, value, yerr=[[below], [above]], color=BLACK, linestyle="none", capsize=3, marker="o", markersize=5
        )
        in_int8 = "" if point.int8_macs is None else f"\n{100 * point.int8_macs:.0f} % of multiply-accumulates in int8"
        hover(
            drawn.lines[0],
            f"layers in float: {len(point.left_in_float)}\n"
            f"{what}: {value:.2f} [{value - below:.2f}, {value + above:.2f}] {unit}{in_int8}",
        )
        if budget.chosen and set(point.left_in_float) == set(candidate.left_in_float):
            axis.plot(place, value, "s", markersize=12, fillstyle="none", color=FLOAT)
    if budget.max_drop is not None:
        axis.axhline(100 * budget.max_drop, linestyle="--", color=BLACK, linewidth=1)
    axis.margins(0.08, 0.12)
    axis.set_xlabel("multiply-accumulates in int8, %" if shares else "layers in float")
    axis.set_ylabel(f"{what}, {unit}")
    axis.set_title(f"on {budget.judged_samples:,} held-out calibration samples")
    axis.grid(True)
    reaches = [_reach(point) for point in held]
    shown = labelled(x, [value for value, _, _ in reaches])
    bars = [(x[n], value - below, x[n], value + above) for n, (value, below, above) in enumerate(reaches)]
    if budget.max_drop is not None:
        bars.append((axis.get_xlim()[0], 100 * budget.max_drop, axis.get_xlim()[1], 100 * budget.max_drop))
    return [Label(x[n], reaches[n][0], str(len(held[n].left_in_float))) for n in shown], bars


def _reach(point: CurvePoint) -> tuple[float, float, float]:
    """The drop, in points, and how far its interval goes below and above it."""
    drop = point.drop
    return 100 * drop.value, 100 * max(0.0, drop.value - drop.low), 100 * max(0.0, drop.high - drop.value)


def _bars(axis: Any, candidate: CandidateRecord) -> None:
    """The noise of each layer, the most sensitive on top."""
    shown = list(reversed(candidate.layers[:MOST_LAYERS]))
    decibels = [_noise_db(layer.noise) for layer in shown]
    known = [value for value in decibels if math.isfinite(value)]
    low, high = (min(known) - 5, max(known) + 2) if known else (-60.0, 0.0)
    for place, (layer, value) in enumerate(zip(shown, decibels, strict=True)):
        (bar,) = axis.barh(
            place,
            min(max(value, low), high) - low,
            left=low,
            color=FLOAT if layer.left_in_float else INT8,
            hatch="//" if layer.left_in_float else None,
            edgecolor=BLACK,
            linewidth=0.5,
        )
        hover(bar, _said(layer, value))
    short = shortened([layer.layer for layer in shown], 28)
    axis.set_yticks(range(len(shown)), [short[layer.layer] for layer in shown])
    axis.set_xlim(low, high)
    axis.set_xlabel("output noise of this layer alone in int8, dB")
    rest = len(candidate.layers) - len(shown)
    axis.set_title("left in float: hatched" + (f"; {rest} quieter layers not shown" if rest else ""))
    axis.grid(True, axis="x")
    axis.set_axisbelow(True)


def _said(layer: LayerNoise, decibels: float) -> str:
    noise = f"{decibels:.1f} dB" if math.isfinite(decibels) else "none" if decibels < 0 else "not finite"
    macs = "" if layer.macs is None else f", {count(layer.macs)} multiply-accumulates"
    return f"{layer.layer} ({layer.operator}{macs})\nnoise: {noise}\n{'float' if layer.left_in_float else 'int8'}"


def labelled(x: Sequence[float], y: Sequence[float]) -> list[int]:
    """Numbers of the points that don't lie on an earlier one: where many do, one number is readable."""
    wide, high = (max(values) - min(values) or 1.0 for values in (x, y))
    found: list[int] = []
    for place in range(len(x)):
        if all(abs(x[place] - x[other]) > wide / 12 or abs(y[place] - y[other]) > high / 20 for other in found):
            found.append(place)
    return found


def _noise_db(noise: float | None) -> float:
    if noise is None:
        return math.inf
    return 10 * math.log10(noise) if noise else -math.inf
