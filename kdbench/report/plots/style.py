"""What all plots share: colours and markers, fonts, ticks, and the texts that a page shows on hover."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.figure import Figure

COLOURS = ("#000000", "#E69F00", "#56B4E9", "#009E73", "#D55E00", "#0072B2", "#CC79A7", "#F0E442")
"""Okabe and Ito's: told apart by the colour-blind."""
MARKERS = "os^DvPX*"

_STYLE: dict[Any, Any] = {
    "font.family": ["DejaVu Sans"],
    "font.size": 10,
    "text.parse_math": False,  # names may hold dollars
    "svg.hashsalt": "kdbench",
    "svg.fonttype": "none",
}

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


def new_figure(width: float, height: float) -> Figure:
    """A figure of that size in inches, whose layout is constrained."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def hover(artist: Artist, text: str) -> None:
    """Has pages show the text when the pointer is on it."""
    artist.set_gid(HOVER)
    artist.set_label(text)


def sign(index: int) -> tuple[str, str]:
    """Colour and marker of a rung by its number: no two of 64 share both."""
    return COLOURS[index % len(COLOURS)], MARKERS[(index + index // len(COLOURS)) % len(MARKERS)]


def log_ticks(axis: Any, low: float, high: float) -> None:
    """Plain numbers at 1, 2 and 5 on a logarithmic x- or y-axis."""
    from matplotlib.ticker import FixedLocator, NullFormatter, NullLocator, StrMethodFormatter

    ticks = [factor * 10.0**power for power in range(-9, 13) for factor in (1, 2, 5)]
    axis.set_major_locator(FixedLocator([tick for tick in ticks if low <= tick <= high]))
    axis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axis.set_minor_locator(NullLocator())
    axis.set_minor_formatter(NullFormatter())
