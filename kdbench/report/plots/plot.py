"""What a plot is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Plot:
    """One figure. Nothing is drawn, and matplotlib not imported, before `draw` is called."""

    name: str
    """Stem of its files, such as `accuracy-latency`; no two plots of a report share it."""
    title: str
    alt: str
    """What it shows, for those who can't see it."""
    draw: Callable[[], Figure]
    """A fresh figure, whose data points are marked by `style.hover`; called under `style.styled`."""
