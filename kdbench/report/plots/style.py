"""What all plots share: colours, markers and lines, fonts, names, and the texts that a page shows on hover."""

from __future__ import annotations

import textwrap
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from kdbench.report.rows import Row
from kdbench.report.table import Ladder
from kdbench.report.text import plain

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.figure import Figure

COLOURS = ("#000000", "#E69F00", "#56B4E9", "#009E73", "#D55E00", "#0072B2", "#CC79A7", "#F0E442")
"""Okabe and Ito's: told apart by the colour-blind."""
MARKERS = "os^DvPX*"
LINES = ("-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)))
"""For prints without colour; not as many as colours, so that neighbours differ in both."""

BLACK, PAPER = "#000000", "#ffffff"
"""A page has its own in their place."""

_STYLE: dict[Any, Any] = {
    "font.family": ["DejaVu Sans"],
    "font.size": 9,
    "axes.titlesize": 9.5,
    "axes.labelsize": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "figure.titlesize": 11,
    "grid.alpha": 0.35,
    "hatch.linewidth": 0.6,
    "legend.frameon": False,
    "legend.fontsize": 8,
    "text.parse_math": False,  # names may hold dollars
    "xtick.labelsize": 8,
    "ytick.labelsize": 8,
    "svg.hashsalt": "kdbench",
    "svg.fonttype": "none",
}

LABEL = 8.0
"""Points high: names at points, and notes."""

HOVER = "hover"
"""The gid of what has a text that is shown on hover: its label."""


@contextmanager
def styled() -> Iterator[None]:
    """In which figures are drawn and written: whatever the user's matplotlibrc says, equal input gives equal bytes."""
    import matplotlib as mpl

    with mpl.rc_context(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from font")  # names may be of any script
        mpl.rcdefaults()
        mpl.rcParams.update(_STYLE)
        yield


def new_figure(width: float, height: float, title: str, note: str = "") -> Figure:
    """A figure of that size in inches, whose layout is constrained, with a title above and a note below."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(textwrap.fill(plain(title), int(11 * width)))
    if note:
        figure.supxlabel(textwrap.fill(plain(note), int(14.5 * width)), fontsize=LABEL)
    return figure


def hover(artist: Artist, text: str) -> None:
    """Has pages show the text when the pointer is on it."""
    artist.set_gid(HOVER)
    artist.set_label(text)


def sign(index: int) -> tuple[str, str]:
    """Colour and marker of a rung by its number: no two of 64 share both."""
    return COLOURS[index % len(COLOURS)], MARKERS[(index + index // len(COLOURS)) % len(MARKERS)]


def rungs_of(ladder: Ladder) -> list[str]:
    """In the order of the file: a rung has the sign of its place there, in all plots and however few are chosen."""
    return list(dict.fromkeys(m.rung for m in (*ladder.result.measurements, *ladder.result.scenarios)))


def headline(ladder: Ladder) -> str:
    """What was measured, and where."""
    cut = "" if ladder.result.complete else " (interrupted)"
    return f"{ladder.result.name} on {ladder.result.machine.name}{cut}"


DOUBTFUL = "†"


def marked(name: str, rows: Iterable[Row]) -> str:
    """A name as it is drawn, with a sign where a claim of one of its cells does not hold."""
    return f"{name} {DOUBTFUL}" if any(row.broken_claims for row in rows) else name


def doubts_note(rows: Iterable[Row]) -> str:
    """What that sign means, where there is one."""
    broken = any(row.broken_claims for row in rows)
    return f" {DOUBTFUL}: a claim of the cell does not hold, see its footnotes." if broken else ""
