"""The trade-off between accuracy and layers in int8, and which layers make the noise: one figure for a search."""

import io
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from kdbench.records.budget import Budget, CandidateRecord
from kdbench.store import write_atomic

MOST_LAYERS = 20
"""Bars that can be read; the least sensitive layers are left out."""

INT8, FLOAT = "#56B4E9", "#D55E00"
"""Of Okabe and Ito's palette; bars of layers in float are hatched too, for prints without colour."""


def save_sensitivity_plot(budget: Budget, stem: Path) -> list[Path]:
    """`<stem>.svg` and `.png` of the candidate that was chosen; nothing where all of its layers are in int8."""
    candidate = next(found for found in budget.candidates if found.name == budget.chosen)
    if not candidate.layers:
        return []
    paths = []
    for kind in ("svg", "png"):
        paths.append(stem.with_name(f"{stem.name}.{kind}"))
        write_atomic(paths[-1], _draw(budget, candidate, kind))
    return paths


def _draw(budget: Budget, candidate: CandidateRecord, kind: str) -> bytes:
    import matplotlib as mpl
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    layers = candidate.layers[:MOST_LAYERS]
    with mpl.rc_context({"svg.hashsalt": "kdbench", "font.size": 10}):
        figure = Figure(figsize=(10.0, max(3.9, 1.4 + 0.24 * len(layers))), layout="constrained")
        FigureCanvasAgg(figure)
        curve, bars = figure.subplots(1, 2)
        _curve(curve, budget, candidate)
        _bars(bars, candidate)
        figure.suptitle(f"{Path(budget.model).stem} in int8 on {budget.backend}: {candidate.name}", fontsize=11)
        buffer = io.BytesIO()
        metadata = {"Date": None} if kind == "svg" else {"Software": None}
        figure.savefig(buffer, format=kind, dpi=150, metadata=metadata)
    return buffer.getvalue()


def _curve(axis: Any, budget: Budget, candidate: CandidateRecord) -> None:
    """Drop against the share of multiply-accumulates in int8, or against the layers in float where that isn't known."""
    points = sorted(candidate.curve, key=lambda point: len(point.left_in_float))
    shares = all(point.int8_macs is not None for point in points)
    x = [100 * (point.int8_macs or 0.0) if shares else float(len(point.left_in_float)) for point in points]
    y = [100 * point.drop.value for point in points]
    below = [100 * (point.drop.value - point.drop.low) for point in points]
    above = [100 * (point.drop.high - point.drop.value) for point in points]
    plot: dict[str, object] = {"color": "#000000", "linestyle": "none", "capsize": 3, "markersize": 6}
    axis.errorbar(x, y, yerr=[[max(0.0, v) for v in below], [max(0.0, v) for v in above]], marker="o", **plot)
    counts = [len(point.left_in_float) for point in points]
    for place in labelled(x, y):
        said = str(counts[place]) if place else f"{counts[place]} in float"
        axis.annotate(said, (x[place], y[place]), xytext=(5, 5), textcoords="offset points", fontsize=8)
    for place, point in enumerate(points):
        if set(point.left_in_float) == set(candidate.left_in_float):
            axis.plot(x[place], y[place], "s", markersize=13, fillstyle="none", color=FLOAT, label="chosen")
    if budget.max_drop is not None:
        axis.axhline(100 * budget.max_drop, linestyle="--", color="#000000", linewidth=1, label="budget")
    axis.set_xlabel("multiply-accumulates in int8, %" if shares else "layers in float")
    what = "samples answered otherwise" if budget.metric == "agreement" else f"drop of {budget.metric}"
    axis.set_ylabel(f"{what}, {'%' if budget.metric == 'agreement' else 'points'} (bars: 95 %)")
    axis.set_title(f"on {budget.judged_samples:,} held-out calibration samples", fontsize=10)
    axis.legend(frameon=False)
    axis.grid(True, alpha=0.3)


def _bars(axis: Any, candidate: CandidateRecord) -> None:
    """The noise of each layer, the most sensitive on top."""
    shown = list(reversed(candidate.layers[:MOST_LAYERS]))
    decibels = [_noise_db(layer.noise) for layer in shown]
    known = [value for value in decibels if math.isfinite(value)]
    low, high = (min(known) - 5, max(known) + 2) if known else (-60.0, 0.0)
    for place, (layer, value) in enumerate(zip(shown, decibels, strict=True)):
        width = min(max(value, low), high) - low
        axis.barh(
            place,
            width,
            left=low,
            color=FLOAT if layer.left_in_float else INT8,
            hatch="//" if layer.left_in_float else None,
            edgecolor="#000000",
            linewidth=0.5,
        )
    axis.set_yticks(range(len(shown)), [_shortened(layer.layer) for layer in shown], fontsize=8)
    axis.set_xlim(low, high)
    axis.set_xlabel("output noise of this layer alone in int8, dB")
    rest = len(candidate.layers) - len(shown)
    axis.set_title("left in float: hatched" + (f"; {rest} quieter layers not shown" if rest else ""), fontsize=10)
    axis.grid(True, axis="x", alpha=0.3)


def labelled(x: Sequence[float], y: Sequence[float]) -> list[int]:
    """Numbers of the points whose labels don't lie on that of an earlier one."""
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


def _shortened(name: str, most: int = 28) -> str:
    return name if len(name) <= most else f"{name[: most // 2 - 1]}…{name[-(most // 2) :]}"
