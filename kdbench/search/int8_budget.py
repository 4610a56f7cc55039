"""The layers that have to stay in float for a bounded loss of accuracy, found with few evaluations of it.

The score is a function that is given: nothing here knows of models, so that the search is tested with made-up ones.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from kdbench.stats import ROUNDING, Interval

PUT_BACK = 8
"""Layers that are tried in int8 again, at most, once a set is found that meets the budget."""

Verdict = Literal["within", "all in float", "even float misses"]


@dataclass(frozen=True)
class Tried:
    """A set of layers left in float, and what int8 in all others costs."""

    left_in_float: frozenset[str]
    drop: Interval
    """Of the metric against fp32, as a share: above 0 where int8 is worse. Its value decides."""


@dataclass(frozen=True)
class Found:
    """How the search ended."""

    verdict: Verdict
    kept: Tried
    """The set that meets the budget; where even float misses it, the one that comes closest."""


def smallest_float_set(
    order: Sequence[str],
    drop: Callable[[frozenset[str]], Interval],
    max_drop: float,
    gain: Mapping[str, float] | None = None,
) -> Found:
    """A small set of layers left in float with which `drop` is at most `max_drop`, a share.

    `order` has the most sensitive layer first, and only its beginnings are looked at: 1, 2, 4, … of them until one
    meets the budget, then by bisection between that and the one before. Of the set so found, all but the last layer,
    without which it failed, are tried in int8 again, those that `gain` most first and `PUT_BACK` of them at most.

    With n layers of which k have to stay, that takes up to 2 + 2·⌈log2 k⌉ + min(k − 1, PUT_BACK) evaluations of `drop`
    for k ≥ 1, and one for none. What is returned was evaluated itself: that more float layers never lose accuracy is
    assumed to find a small set, not to trust it. Raises ValueError for a layer that is named twice.
    """
    if len(set(order)) != len(order):
        raise ValueError("each layer once, please")
    known: dict[frozenset[str], Interval] = {}

    def meets(left: frozenset[str]) -> bool:
        if left not in known:
            known[left] = drop(left)
        return known[left].value <= max_drop + ROUNDING

    def ended(verdict: Verdict, left: frozenset[str]) -> Found:
        return Found(verdict, Tried(left, known[left]))

    fails, count = -1, 0
    while not meets(frozenset(order[:count])):
        if count == len(order):
            return ended("even float misses", min(known, key=lambda left: known[left].value))
        fails, count = count, min(max(1, 2 * count), len(order))
    while count - fails > 1:
        middle = (fails + count) // 2
        if meets(frozenset(order[:middle])):
            count = middle
        else:
            fails = middle
    left = frozenset(order[:count])
    worth = gain or {}
    # Of equal gain the least sensitive is tried first.
    places = sorted(range(count - 1), key=lambda place: (-worth.get(order[place], 0.0), -place))
    for layer in [order[place] for place in places[:PUT_BACK]]:
        if meets(left - {layer}):
            left -= {layer}
    return ended("all in float" if order and len(left) == len(order) else "within", left)
