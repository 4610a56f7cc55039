"""The Pareto front: rungs than which no other is both better and cheaper."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from kdbench.stats import Interval

Standing = Literal["on", "maybe", "off"]


@dataclass(frozen=True)
class Point:
    cost: Interval
    """The less, the better."""
    gain: Interval
    """The more, the better."""


def standings(points: Sequence[Point]) -> list[Standing]:
    """`on` the front by the estimates; `maybe` where the interval reaches it: its best corner is beaten by none of it.

    Points that are equal are on the front together.
    """
    front = [p for p in points if not any(_beats(q, p.cost.value, p.gain.value) for q in points)]
    return [
        "on" if p in front else "off" if any(_beats(q, p.cost.low, p.gain.high) for q in front) else "maybe"
        for p in points
    ]


def _beats(one: Point, cost: float, gain: float) -> bool:
    """Whether its estimate is as cheap and as good, and better in one of them."""
    as_good = one.cost.value <= cost and one.gain.value >= gain
    return as_good and (one.cost.value < cost or one.gain.value > gain)


def front_line(points: Sequence[Point]) -> list[tuple[float, float]]:
    """Cost and gain of those on the front, the cheapest first."""
    on = {(p.cost.value, p.gain.value) for p, how in zip(points, standings(points), strict=True) if how == "on"}
    return sorted(on)
