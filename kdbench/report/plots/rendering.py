"""Plots as bytes: drawn once for all formats."""

from __future__ import annotations

import functools
import io
import re
from collections.abc import Sequence
from pathlib import Path

from kdbench.errors import printable
from kdbench.report.plots.plot import Plot
from kdbench.report.plots.style import HOVER, styled
from kdbench.store import write_atomic

DPI = 150


KINDS = ("svg", "png")
"""What is written of a plot, by the ending of its file."""


def save_plots(plots: Sequence[Plot], folder: Path) -> list[Path]:
    """`<name>.svg` and `.png` of each."""
    paths = []
    for plot in plots:
        for kind, write in zip(KINDS, (svg, png), strict=True):
            paths.append(folder / f"{plot.name}.{kind}")
            write_atomic(paths[-1], write(plot))
    return paths


NAMES = (
    "accuracy-latency", "accuracy-size", "accuracy-macs", "accuracy-parameters", "throughput-batch",
    "throughput-threads", "latency-distribution", "training-curves",
)  # fmt: skip
"""Of the plots of a report, before the number of their result file."""


def remove_other_plots(folder: Path, plots: Sequence[Plot]) -> None:
    """Removes from a report's folder the plots that an earlier report had, and this one has not."""
    kept = {plot.name for plot in plots}
    for path in folder.iterdir():
        known = re.fullmatch(rf"({'|'.join(NAMES)})(-\d+)?", path.stem)
        if known and path.suffix in (".svg", ".png") and path.stem not in kept:
            path.unlink()


def svg(plot: Plot) -> bytes:
    """A whole SVG file; equal input gives equal bytes."""
    return drawn(plot)[0].encode()


def png(plot: Plot) -> bytes:
    """A PNG file at `DPI`; equal input gives equal bytes."""
    return drawn(plot)[1]


@functools.lru_cache(maxsize=128)
def drawn(plot: Plot) -> tuple[str, bytes, tuple[str, ...]]:
    """SVG and PNG of one drawing, and its hover texts: that of `hover-0` in the SVG first."""
    from matplotlib.text import Text

    with styled():
        figure = plot.draw()
        for written in figure.findobj(Text):  # names from elsewhere may hold signs that XML doesn't
            written.set_text(printable(written.get_text()))
        marked = figure.findobj(lambda artist: artist.get_gid() == HOVER)
        for number, artist in enumerate(marked):
            artist.set_gid(f"{HOVER}-{number}")
        image, text = io.BytesIO(), io.StringIO()
        figure.savefig(image, format="png", dpi=DPI, metadata={"Software": None})
        figure.set_layout_engine("none")  # it has been laid out
        figure.savefig(text, format="svg", metadata={"Date": None, "Creator": None, "Title": plot.title})
    return text.getvalue(), image.getvalue(), tuple(str(artist.get_label()) for artist in marked)
