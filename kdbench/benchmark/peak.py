"""The highest rate that a server bears: a search over rates, whatever tells whether one passes."""

from collections.abc import Callable
from math import inf, sqrt
from typing import Literal

FINE, COARSE = 0.05, 0.15
"""How far, as a share, the lowest rate that failed may lie above the highest that passed; the latter where time is out.
"""

Step = Literal["search", "confirm"]


def highest_rate(
    passes: Callable[[float, Step], bool],
    start: float,
    lowest: float,
    more: Callable[[], bool],
    factor: float = 2.0,
) -> float | None:
    """The highest rate that passed twice, the second time to confirm it; None where none from `lowest` on did.

    From `start` up or down by `factor` until a rate that passed and one that failed enclose the bound, then halfway
    between them on a logarithmic scale, to within `FINE`, or `COARSE` once `more` says that time is out. A rate that is
    the best of several tries owes something to chance: one that doesn't pass again is lowered until one does.
    """
    good, bad, rate = 0.0, inf, start
    while True:
        if passes(rate, "search"):
            good = rate
        else:
            bad = rate
        if not good:
            if bad <= lowest:
                return None
            rate = max(lowest, rate / factor)
        elif bad <= good * (1 + (FINE if more() else COARSE)):
            break
        else:
            rate = good * factor if bad == inf else sqrt(good * bad)
    while not passes(good, "confirm"):
        if good <= lowest:
            return None
        good = max(lowest, good / (1 + (FINE if more() else COARSE)))
    return good
