"""Accuracy, or what the task has in its place, against latency: a panel for each backend, thread count and batch."""

import io
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path

from kdbench.report.rows import Metric, Row, place
from kdbench.report.table import Ladder
from kdbench.store import write_atomic

COLOURS = ("#000000", "#E69F00", "#56B4E9", "#009E73", "#D55E00", "#0072B2", "#CC79A7", "#F0E442")
"""Okabe and Ito's: told apart by the colour-blind."""
MARKERS = "os^DvPX*"


def save_plot(ladder: Ladder, folder: Path, suffix: str = "") -> list[Path]:
    """`accuracy-latency<suffix>.svg` and `.png`; nothing where no cell has both numbers."""
    rows = [row for row in ladder.rows if _height(ladder, row) is not None and row.latency_p50_s is not None]
    if not rows:
        return []
    paths = []
    for kind in ("svg", "png"):
        paths.append(folder / f"accuracy-latency{suffix}.{kind}")
        write_atomic(paths[-1], _draw(ladder, rows, kind))
    return paths


def _height(ladder: Ladder, row: Row) -> float | None:
    """The share that is drawn. Where that is agreement with the baseline, the baseline agrees with itself."""
    shares: dict[Metric, float | None] = {"accuracy": row.accuracy, "f1": row.f1_micro, "agreement": row.agreement}
    if ladder.metric == "agreement" and row.rung == ladder.result.baseline:
        return 1.0
    return shares[ladder.metric]


def _draw(ladder: Ladder, rows: Sequence[Row], kind: str) -> bytes:
    import matplotlib as mpl
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import NullFormatter, ScalarFormatter

    panels = [list(group) for _, group in groupby(rows, key=place)]
    rungs = list(dict.fromkeys(row.rung for row in rows))
    with mpl.rc_context({"svg.hashsalt": "kdbench", "font.size": 10}):
        figure = Figure(figsize=(1.5 + 4.0 * len(panels), 3.9), layout="constrained")
        FigureCanvasAgg(figure)
        axes = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
        for axis, panel in zip(axes, panels, strict=True):
            for row in panel:
                share = _height(ladder, row)
                assert row.latency_p50_s is not None and share is not None
                colour, marker = sign(rungs.index(row.rung))
                axis.errorbar(
                    row.latency_p50_s * 1e3,
                    100 * share,
                    yerr=_bar(row),
                    linestyle="none",
                    capsize=3,
                    markersize=9,
                    alpha=0.85,
                    color=colour,
                    marker=marker,
                    label=row.rung,
                )
            axis.set_xscale("log")
            axis.xaxis.set_major_formatter(ScalarFormatter())
            axis.xaxis.set_minor_formatter(NullFormatter())
            low, high = axis.get_xlim()
            axis.set_xticks([tick for tick in _ticks() if low <= tick <= high])
            axis.grid(True, alpha=0.3)
            backend, threads, batch, dims = place(panel[0])
            title = f"{backend}, threads {threads}, batch {batch}{f', {dims}' if dims else ''}"
            axis.set_title(title, fontsize=10)
            axis.set_xlabel("median latency, ms (log scale)")
        name, baseline = ladder.result.name, ladder.result.baseline
        metric = {"accuracy": "accuracy", "f1": "micro F1", "agreement": f"agreement with {baseline}"}[ladder.metric]
        axes[0].set_ylabel(f"{metric}, %")
        handles, labels = axes[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside right upper", frameon=False)
        bars = "" if ladder.metric == "agreement" else f" (bars: 95 % of its difference to {baseline})"
        figure.suptitle(f"{name}: {metric}{bars} against latency", fontsize=11)
        buffer = io.BytesIO()
        metadata = {"Date": None} if kind == "svg" else {"Software": None}
        figure.savefig(buffer, format=kind, dpi=150, metadata=metadata)
    return buffer.getvalue()


def sign(index: int) -> tuple[str, str]:
    """Colour and marker of a rung by its number: no two of 64 share both."""
    return COLOURS[index % len(COLOURS)], MARKERS[(index + index // len(COLOURS)) % len(MARKERS)]


def _bar(row: Row) -> tuple[list[float], list[float]] | None:
    """Points below and above the accuracy or F1 that the interval of its paired difference reaches."""
    found = row.difference
    if found is None:
        return None
    below, above = found.value - found.low, found.high - found.value
    return [100 * max(below, 0.0)], [100 * max(above, 0.0)]


def _ticks() -> list[float]:
    return [factor * 10.0**power for power in range(-4, 6) for factor in (1, 2, 5)]
