"""Where names go: beside their points, on no other name or marker. Geometry in display units, whatever they are."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Boxes = NDArray[np.float64]
"""Left, bottom, right, top [..., 4]; of lines both ends."""

NEAR = (1.0, 2.0, 3.5, 5.0, 7.0, 9.5, 12.5, 16.0, 20.0, 25.0, 31.0)
"""Distances that are tried, in half markers."""
DIRECTIONS = np.deg2rad(
    [side * angle for angle in (30, 150, 0.1, 179.9, 90, 60, 120, 15, 165, 45, 135, 75, 105) for side in (1, -1)]
)
"""The first are preferred."""
CROSSED = 12.0
"""Half markers that a name rather goes further away than lie on a bar, or have its line cross another's; three times
as many before a line goes through a name."""


def placed(
    points: Sequence[tuple[float, float]],
    sizes: Sequence[tuple[float, float]],
    bars: Sequence[tuple[float, float, float, float]],
    within: tuple[float, float, float, float],
    marker: float,
) -> list[Boxes | None]:
    """A box for each name, `sizes` wide and high; None for one that has no room `within`.

    One after the other, each where it costs least: the nearest place on no marker (a square of that size at each of the
    points) and no earlier name, far from bars and from the lines that lead to names.
    """
    half = marker / 2
    markers = np.array([(x - half, y - half, x + half, y + half) for x, y in points])
    obstacles = np.array(bars).reshape(-1, 4)
    boxes, leads = np.empty((0, 4)), np.empty((0, 4))
    found: list[Boxes | None] = []
    for (x, y), (wide, high) in zip(points, sizes, strict=True):
        places, lines, cost = _candidates(x, y, wide, high, half)
        outside = (places[:, :2] < np.array(within[:2])).any(1) | (places[:, 2:] > np.array(within[2:])).any(1)
        cost[outside | _overlaps(places, markers).any(1) | _overlaps(places, boxes).any(1)] = np.inf
        under = _cuts(leads, places).sum(0) + _cuts(lines, boxes).sum(1)
        cost += CROSSED * half * (_cuts(obstacles, places).sum(0) + 3 * under + _cross(lines, leads).sum(1))
        best = int(np.argmin(cost))
        found.append(places[best] if np.isfinite(cost[best]) else None)
        if np.isfinite(cost[best]):
            boxes, leads = np.vstack([boxes, places[best]]), np.vstack([leads, lines[best]])
    return found


def lead(point: tuple[float, float], box: Boxes) -> tuple[float, float]:
    """Where the line from the point to a name ends."""
    return float(np.clip(point[0], box[0], box[2])), float(np.clip(point[1], box[1], box[3]))


def _candidates(x: float, y: float, wide: float, high: float, half: float) -> tuple[Boxes, Boxes, NDArray[np.float64]]:
    """Boxes around the point, the lines to them, and what they cost: their distance, and a little by direction."""
    away, turn = (grid.ravel() for grid in np.meshgrid(np.array(NEAR) * half, DIRECTIONS, indexing="ij"))
    across, up = np.cos(turn), np.sin(turn)
    middle_x = x + across * away + np.clip(2 * across, -1, 1) * wide / 2
    middle_y = y + up * away + np.clip(2 * up, -1, 1) * high / 2
    boxes = np.stack([middle_x - wide / 2, middle_y - high / 2, middle_x + wide / 2, middle_y + high / 2], axis=1)
    ends_x, ends_y = np.clip(x, boxes[:, 0], boxes[:, 2]), np.clip(y, boxes[:, 1], boxes[:, 3])
    lines = np.stack([np.full_like(ends_x, x), np.full_like(ends_y, y), ends_x, ends_y], axis=1)
    preference = np.tile(np.arange(len(DIRECTIONS)) * 0.05 * half, len(NEAR))
    return boxes, lines, np.hypot(ends_x - x, ends_y - y) + preference


def _overlaps(some: Boxes, others: Boxes) -> NDArray[np.bool_]:
    """[some, others]"""
    a, b = some[:, None], others[None]
    return np.asarray((a[..., :2] < b[..., 2:]).all(-1) & (b[..., :2] < a[..., 2:]).all(-1))


def _cuts(lines: Boxes, boxes: Boxes) -> NDArray[np.bool_]:
    """Whether lines go through the inside of boxes [lines, boxes]: Liang and Barsky's clipping."""
    start, step = lines[:, None, :2], (lines[:, 2:] - lines[:, :2])[:, None]
    with np.errstate(divide="ignore", invalid="ignore"):
        low, high = (boxes[None, :, :2] - start) / step, (boxes[None, :, 2:] - start) / step
    within = (start > boxes[None, :, :2]) & (start < boxes[None, :, 2:])
    still = np.broadcast_to(step == 0, low.shape)
    enter = np.where(still, np.where(within, -np.inf, np.inf), np.minimum(low, high)).max(-1)
    leave = np.where(still, np.where(within, np.inf, -np.inf), np.maximum(low, high)).min(-1)
    return np.asarray((enter < leave) & (enter < 1) & (leave > 0))


def _cross(some: Boxes, others: Boxes) -> NDArray[np.bool_]:
    """Whether lines cross each other inside [some, others]; those from one point don't."""

    def side(line: Boxes, x: NDArray[np.float64], y: NDArray[np.float64]) -> NDArray[np.float64]:
        along, up = line[..., 2] - line[..., 0], line[..., 3] - line[..., 1]
        return along * (y - line[..., 1]) - up * (x - line[..., 0])

    a, b = some[:, None], others[None]
    apart_a = side(a, b[..., 0], b[..., 1]) * side(a, b[..., 2], b[..., 3]) < 0
    return np.asarray(apart_a & (side(b, a[..., 0], a[..., 1]) * side(b, a[..., 2], a[..., 3]) < 0))
