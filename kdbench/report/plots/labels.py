"""Names at points and at the ends of lines, none over another; else a legend."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from kdbench.report.plots.placing import lead, placed
from kdbench.report.plots.style import BLACK, LABEL

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.figure import Figure

MARKER = 10.0
"""Points that a marker takes, with what is free around it."""
GAP = 2.0
"""Points between a name and the next."""
LINE = 1.25
"""Height of a line of text, in its size."""


@dataclass(frozen=True)
class Label:
    x: float
    y: float
    text: str


Bar = tuple[float, float, float, float]
"""A line, from x, y to x, y in data."""


def name_points(
    figure: Figure,
    panels: Sequence[tuple[Any, Sequence[Label], Sequence[Bar]]],
    signs: Mapping[str, Artist] | None = None,
) -> None:
    """Names beside the points, with a line to those that are not close, and not on bars if it can be.

    Where one of them has no room, a legend of `signs` in the place of all; without signs there are none.

    Freezes the layout of the figure, on which the places of the names depend.
    """
    figure.draw_without_rendering()
    figure.set_layout_engine("none")
    drawn = [_named(*panel) for panel in panels]
    if None in drawn and signs is not None:
        for artist in (artist for panel in drawn for artist in panel or ()):
            artist.remove()
        add_legend(figure, signs)
        figure.draw_without_rendering()
        figure.set_layout_engine("none")


def _named(axis: Any, labels: Sequence[Label], bars: Sequence[Bar]) -> list[Artist] | None:
    """Names and the lines to them; nothing is drawn, and None returned, where a name has no room."""
    unit = axis.figure.dpi / 72
    to_display, renderer = axis.transData.transform, axis.figure.canvas.get_renderer()
    texts = [axis.text(0, 0, label.text, fontsize=LABEL, color=BLACK, transform=None) for label in labels]
    extents = [text.get_window_extent(renderer) for text in texts]
    points = [tuple(to_display((label.x, label.y))) for label in labels]
    lines = [(*to_display(bar[:2]), *to_display(bar[2:])) for bar in bars]
    sizes = [(extent.width + 2 * GAP * unit, extent.height + GAP * unit) for extent in extents]
    boxes = placed(points, sizes, lines, axis.bbox.extents, MARKER * unit)
    drawn: list[Artist] = []
    for text, extent, point, box in zip(texts, extents, points, boxes, strict=True):
        if box is None:
            for artist in (*texts, *drawn):
                artist.remove()
            return None
        x, y = axis.transAxes.inverted().transform(
            (box[0] + GAP * unit - extent.x0, box[1] + GAP * unit / 2 - extent.y0)
        )
        text.set_transform(axis.transAxes)
        text.set_position((x, y))
        ends = axis.transAxes.inverted().transform([point, lead(point, box)])
        drawn += axis.plot(*ends.T, transform=axis.transAxes, color=BLACK, linewidth=0.5, zorder=1.5)
    return [*texts, *drawn]


def name_ends(figure: Figure, panels: Sequence[tuple[Any, Sequence[Label]]], signs: Mapping[str, Artist]) -> None:
    """Names in a column right of each panel, in the order of the lines' ends; a legend where they have no room.

    Freezes the layout of the figure, on which the places of the names depend.
    """
    column = [
        [
            axis.annotate(
                label.text,
                (label.x, label.y),
                xytext=(1.04, 0.5),
                textcoords="axes fraction",
                fontsize=LABEL,
                verticalalignment="center",
                annotation_clip=False,
                arrowprops={"arrowstyle": "-", "linewidth": 0.4, "color": BLACK, "shrinkA": 1, "shrinkB": 3},
            )
            for label in labels
        ]
        for axis, labels in panels
    ]
    figure.draw_without_rendering()
    heights = [axis.get_window_extent().height for axis, _ in panels]
    step = LABEL * LINE * figure.dpi / 72
    if any(len(labels) * step > height for (_, labels), height in zip(panels, heights, strict=True)):
        for note in (note for notes in column for note in notes):
            note.remove()
        add_legend(figure, signs)
        figure.draw_without_rendering()
    else:
        for (axis, labels), notes, height in zip(panels, column, heights, strict=True):
            wanted = [axis.transAxes.inverted().transform(axis.transData.transform((p.x, p.y)))[1] for p in labels]
            for note, y in zip(notes, spread(wanted, step / height), strict=True):
                note.set_y(y)
    figure.set_layout_engine("none")


def spread(wanted: Sequence[float], step: float) -> list[float]:
    """Heights from 0 to 1, in the order of the wanted ones, `step` apart or more, and near to them.

    Neighbours that are too close are moved apart around their common middle.
    """
    order = sorted(range(len(wanted)), key=lambda number: (wanted[number], -number))
    groups: list[tuple[float, int]] = []  # middle, size
    for number in order:
        groups.append((_within(wanted[number], step, 1), 1))
        while len(groups) > 1 and groups[-1][0] - groups[-2][0] < step * (groups[-1][1] + groups[-2][1]) / 2:
            (above, more), (below, some) = groups.pop(), groups.pop()
            groups.append((_within((above * more + below * some) / (more + some), step, more + some), more + some))
    found = [0.0] * len(wanted)
    places = iter(order)
    for middle, size in groups:
        for place in range(size):
            found[next(places)] = middle + step * (place - (size - 1) / 2)
    return found


def _within(middle: float, step: float, size: int) -> float:
    """The middle of a group that ends within 0 and 1."""
    half = step * size / 2
    return min(max(middle, half), 1 - half)


def add_legend(figure: Figure, signs: Mapping[str, Artist]) -> None:
    """Right of the panels, in room of its own between title and note."""
    figure.set_layout_engine("constrained")
    wide, high = figure.get_size_inches()
    columns = math.ceil(len(signs) / (0.75 * high * 72 / (1.7 * LABEL)))
    figure.set_size_inches(wide + 1.7 * columns, high)
    figure.legend(list(signs.values()), list(signs), loc="outside right center", ncols=columns)
