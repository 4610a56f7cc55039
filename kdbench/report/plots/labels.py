"""Names at points and at the ends of lines, none over another; else a legend."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from kdbench.report.plots.style import BLACK, LABEL

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.figure import Figure

LINE = 1.25
"""Height of a line of text, in its size."""


@dataclass(frozen=True)
class Label:
    x: float
    y: float
    text: str
    bars: tuple[tuple[float, float, float, float], ...] = ()
    """Lines from x, y to x, y that no label may lie on."""


class _InData:
    """The coordinates that are meant anyway: where they are told, the figure is not drawn once more for each panel."""

    def _as_mpl_transform(self, axes: Any) -> Any:
        return axes.transData


def name_points(
    figure: Figure, panels: Sequence[tuple[Any, Sequence[Label]]], signs: Mapping[str, Artist] | None = None
) -> None:
    """Names beside the points, with a line to those that are not close.

    Where one of them has no room, a legend of `signs` in the place of all; without signs it is left out.

    Freezes the layout of the figure, on which the places of the names depend.
    """
    import textalloc

    figure.draw_without_rendering()
    figure.set_layout_engine("none")
    drawn: list[Artist] = []
    missing = False
    for axis, labels in panels:
        _, _, texts, lines = textalloc.allocate(
            axis,
            [label.x for label in labels],
            [label.y for label in labels],
            [label.text for label in labels],
            x_scatter=[label.x for label in labels],
            y_scatter=[label.y for label in labels],
            x_lines=[[bar[0], bar[2]] for label in labels for bar in label.bars] or None,
            y_lines=[[bar[1], bar[3]] for label in labels for bar in label.bars] or None,
            textsize=LABEL,
            textcolor=BLACK,
            linecolor=BLACK,
            linewidth=0.5,
            max_distance=0.4,
            nbr_candidates=400,
            draw_all=False,
            transform=_InData(),
        )
        drawn += [artist for artist in (*texts, *lines) if artist is not None]
        missing |= any(text is None for text in texts)
    if missing and signs is not None:
        for artist in drawn:
            artist.remove()
        add_legend(figure, signs)
        figure.draw_without_rendering()
        figure.set_layout_engine("none")


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
    """Right of the panels, in the layout that it asks for."""
    figure.set_layout_engine("constrained")
    figure.legend(list(signs.values()), list(signs), loc="outside right upper")
