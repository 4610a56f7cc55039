"""Panels side by side, and axes with plain numbers."""

from __future__ import annotations

import math
import re
import textwrap
from collections.abc import Callable, Hashable, Iterable, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any, TypeVar

from kdbench.report.plots.style import new_figure
from kdbench.report.rows import Row
from kdbench.report.text import plain

if TYPE_CHECKING:
    from matplotlib.figure import Figure

WIDTH, HEIGHT = 4.3, 3.3
"""Of a panel, in inches."""
MOST_PANELS = 12
"""More can't be read; the others are left out, and the note says so."""

Item = TypeVar("Item")
Key = TypeVar("Key", bound=Hashable)


def grouped(items: Iterable[Item], key: Callable[[Item], Key]) -> dict[Key, list[Item]]:
    """By key, in the order in which the keys come first."""
    found: dict[Key, list[Item]] = {}
    for item in items:
        found.setdefault(key(item), []).append(item)
    return found


def where(row: Row, batch: bool = True, threads: bool = True) -> str:
    """The title of a panel: `cpu, 1 thread, batch 32`."""
    said = [row.backend]
    if threads:
        said.append(f"{row.threads} thread{'s' if row.threads > 1 else ''}")
    if batch:
        said.append(f"batch {row.batch}")
    return ", ".join([*said, row.dims] if row.dims else said)


def new_panels(
    titles: Sequence[str], title: str, note: str, columns: int = 3, height: float = HEIGHT, sharey: bool = True
) -> tuple[Figure, list[Any]]:
    """A figure with a panel for each of the titles, of which no more than `MOST_PANELS` are drawn."""
    if len(titles) > MOST_PANELS:
        note = f"{note} {len(titles) - MOST_PANELS} further panels are not shown.".strip()
        titles = titles[:MOST_PANELS]
    across = min(columns, len(titles))
    down = math.ceil(len(titles) / across)
    figure = new_figure(0.6 + WIDTH * across, 0.8 + height * down, title, note)
    grid = figure.subplots(down, across, squeeze=False, sharey=sharey).ravel()
    for axis in grid[len(titles) :]:
        axis.set_visible(False)
    for axis, said in zip(grid, titles, strict=False):
        axis.set_title(textwrap.fill(plain(said), 48))
        axis.grid(True)
        axis.set_axisbelow(True)
        axis.tick_params(labelleft=True)
    return figure, list(grid[: len(titles)])


def across_for(keys: Sequence[tuple[Hashable, Hashable]]) -> int:
    """Columns of panels told by two keys: the second's, where that makes a full grid of up to three, else three."""
    rows, columns = ({key[number] for key in keys} for number in (0, 1))
    full = len(rows) * len(columns) == len(keys) and len(columns) <= 3
    return len(columns) if full and len(columns) > 1 else 3


def log_axis(axis: Any, values: Iterable[float], show: Callable[[float], str], room: float = 0.12) -> None:
    """A logarithmic x- or y-axis (`axes.xaxis`) around the values, all above 0, with plain numbers as `show` has them.

    `room` is left free at both ends, as a share of the length.
    """
    from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

    known = [math.log10(value) for value in values]
    low, high = min(known), max(known)
    if high - low < 0.2:
        low, high = (low + high) / 2 - 0.1, (low + high) / 2 + 0.1
    low, high = low - room * (high - low), high + room * (high - low)
    parent, name = axis.axes, axis.axis_name
    getattr(parent, f"set_{name}scale")("log")
    getattr(parent, f"set_{name}lim")(10**low, 10**high)
    axis.set_major_locator(FixedLocator(_ticks(10**low, 10**high)))
    axis.set_major_formatter(FuncFormatter(lambda value, _: _brief(show(value))))
    axis.set_minor_locator(NullLocator())


def _brief(number: str) -> str:
    """A round number without zeros at its end: `50.0 µs` as `50 µs`."""
    return re.sub(r"(\.\d*?)0+(?=\D|$)", lambda found: found[1].rstrip("."), number)


def _ticks(low: float, high: float) -> list[float]:
    """Round numbers from low to high: the densest kind that has room for its labels, of two or more."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    wide = math.log(high / low)
    for factors in ((1, 2, 3, 4, 5, 6, 8), (1, 2, 3, 5), (1, 2, 5), (1, 3), (1,)):
        found = [f * 10.0**p for p in powers for f in factors if low <= f * 10.0**p <= high]
        if all(math.log(after / before) > 0.14 * wide for before, after in pairwise(found)):
            break
    else:
        found = found[:: math.ceil(len(found) / 6)]
    if len(found) >= 2:
        return found
    from matplotlib.ticker import MaxNLocator

    return [tick for tick in MaxNLocator(4, steps=[1, 2, 5, 10]).tick_values(low, high) if low <= tick <= high]


def count_axis(axis: Any, counts: Iterable[int]) -> None:
    """A logarithmic axis with a tick at each of the counts that has room for its number."""
    from matplotlib.ticker import FixedFormatter, FixedLocator, NullLocator

    known = sorted(set(counts))
    log_axis(axis, known, str)
    wide = math.log(known[-1] / known[0]) or 1.0
    ticks: list[int] = []
    for count in known:
        if not ticks or math.log(count / ticks[-1]) > wide / 12:
            ticks.append(count)
    axis.set_major_locator(FixedLocator(ticks))
    axis.set_major_formatter(FixedFormatter([str(tick) for tick in ticks]))
    axis.set_minor_locator(NullLocator())
