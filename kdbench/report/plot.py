"""Accuracy against latency: a panel for each backend, thread count and batch."""

import io
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path

from kdbench.report.table import Ladder, Row
from kdbench.store import write_atomic

COLOURS = ("#000000", "#E69F00", "#56B4E9", "#009E73", "#D55E00", "#0072B2", "#CC79A7", "#F0E442")
"""Okabe and Ito's: told apart by the colour-blind."""
MARKERS = "os^DvPX*"


def save_plot(ladder: Ladder, folder: Path, suffix: str = "") -> list[Path]:
    """`accuracy-latency<suffix>.svg` and `.png`; nothing where no cell has both numbers."""
    rows = [row for row in ladder.rows if row.accuracy is not None and row.latency_p50_s is not None]
    if not rows:
        return []
    paths = []
    for kind in ("svg", "png"):
        paths.append(folder / f"accuracy-latency{suffix}.{kind}")
        write_atomic(paths[-1], _draw(ladder.result.name, ladder.result.baseline, rows, kind))
    return paths


def _draw(name: str, baseline: str, rows: Sequence[Row], kind: str) -> bytes:
    import matplotlib as mpl
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import NullFormatter, ScalarFormatter

    panels = [list(group) for _, group in groupby(rows, key=lambda row: (row.backend, row.threads, row.batch))]
    rungs = list(dict.fromkeys(row.rung for row in rows))
    with mpl.rc_context({"svg.hashsalt": "kdbench", "font.size": 10}):
        figure = Figure(figsize=(1.5 + 4.0 * len(panels), 3.9), layout="constrained")
        FigureCanvasAgg(figure)
        axes = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
        for axis, panel in zip(axes, panels, strict=True):
            for row in panel:
                assert row.latency_p50_s is not None and row.accuracy is not None
                index = rungs.index(row.rung)
                axis.errorbar(
                    row.latency_p50_s * 1e3,
                    100 * row.accuracy,
                    yerr=_bar(row),
                    linestyle="none",
                    capsize=3,
                    markersize=9,
                    alpha=0.85,
                    color=COLOURS[index % len(COLOURS)],
                    marker=MARKERS[index % len(MARKERS)],
                    label=row.rung,
                )
            axis.set_xscale("log")
            axis.xaxis.set_major_formatter(ScalarFormatter())
            axis.xaxis.set_minor_formatter(NullFormatter())
            low, high = axis.get_xlim()
            axis.set_xticks([tick for tick in _ticks() if low <= tick <= high])
            axis.grid(True, alpha=0.3)
            axis.set_title(f"{panel[0].backend}, threads {panel[0].threads}, batch {panel[0].batch}", fontsize=10)
            axis.set_xlabel("median latency, ms (log scale)")
        axes[0].set_ylabel("accuracy, %")
        handles, labels = axes[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside right upper", frameon=False)
        figure.suptitle(f"{name}: accuracy (bars: 95 % of its difference to {baseline}) against latency", fontsize=11)
        buffer = io.BytesIO()
        metadata = {"Date": None} if kind == "svg" else {"Software": None}
        figure.savefig(buffer, format=kind, dpi=150, metadata=metadata)
    return buffer.getvalue()


def _bar(row: Row) -> tuple[list[float], list[float]] | None:
    """Points below and above the accuracy that the interval of its paired difference reaches."""
    if row.accuracy_diff is None or row.accuracy_diff_low is None or row.accuracy_diff_high is None:
        return None
    below, above = row.accuracy_diff - row.accuracy_diff_low, row.accuracy_diff_high - row.accuracy_diff
    return [100 * max(below, 0.0)], [100 * max(above, 0.0)]


def _ticks() -> list[float]:
    return [factor * 10.0**power for power in range(-4, 6) for factor in (1, 2, 5)]
