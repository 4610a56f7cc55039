"""Whether changes keep their bounds: many at a time, looked at more than once, and what would settle an open one.

A change is counted so that more is worse. Two errors are possible, each kept below `ERROR` for the whole gate:

- to call something beyond its bound that is not. One of many comparisons suffices for it: p-values of the hypotheses
  “no worse than the bound” are adjusted for all of them by Holm (1979), which holds whatever their dependence.
- to let all pass as within their bounds where one is not. That takes an error in that very one, however many others
  there are: nothing is adjusted for them (an intersection-union test, Berger 1982).

Whoever looks after every round, and stops when the interval is where he wants it, is wrong far more often than its
level says. So there are few looks, each at half as many rounds again as the one before, and look k may spend
1 / (k · (k + 1)) of the error: these shares add up to 1 however long it goes on.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from kdbench import stats
from kdbench.records.gate import Outcome

ERROR = 0.025
"""Of each kind, for the whole gate: that of a two-sided interval of 95 % on either side."""

FIRST_LOOK, GROWTH = 5, 1.5
"""Rounds before the first look, and times as many before each next one."""

MOST_ROUNDS, MOST_SAMPLES = 2000, 10_000_000
"""More are not asked for: the change is as good as the bound itself."""


@dataclass(frozen=True)
class Change:
    """An estimate, more is worse, and how well it is known: by Student's t with `freedom` degrees of it."""

    value: float
    error: float
    """Standard error."""
    freedom: float = math.inf
    n: int = 1
    """Rounds or samples that it was seen in."""
    looks: float = 1.0
    """`ERROR` / `looks` is what it may be decided by."""
    centre: float | None = None
    """Of the interval, where that is not the value."""

    def limits(self) -> tuple[float, float]:
        """Of the interval that `ERROR` lies outside of on either side, for all looks together."""
        from scipy import special

        middle = self.value if self.centre is None else self.centre
        half = self.error * -float(special.stdtrit(self.freedom, ERROR / self.looks))
        return middle - half, middle + half

    def p_within(self, bound: float) -> float:
        """Of the hypothesis that the change is no worse than the bound, for all looks together."""
        from scipy import special

        over = (self.value if self.centre is None else self.centre) - bound
        if self.error == 0:
            return 0.0 if over > 0 else 1.0
        return min(1.0, self.looks * float(special.stdtr(self.freedom, -over / self.error)))


# --- changes ----------------------------------------------------------------------------------------------------------


def paired(new: ArrayLike, old: ArrayLike, looks: float = 1.0) -> Change | None:
    """Mean of `new` minus `old`, pair by pair; None for fewer than two pairs."""
    difference = np.asarray(new, dtype=np.float64) - np.asarray(old, dtype=np.float64)
    n = difference.size
    if n < 2:
        return None
    return Change(float(difference.mean()), float(difference.std(ddof=1)) / n**0.5, n - 1, n, looks)


def unpaired(new: ArrayLike, old: ArrayLike, looks: float = 1.0) -> Change | None:
    """The same of values that are no pairs, by Welch (1947); None for fewer than two of either."""
    ours, theirs = np.asarray(new, dtype=np.float64), np.asarray(old, dtype=np.float64)
    n = min(ours.size, theirs.size)
    if n < 2:
        return None
    parts = [float(values.var(ddof=1)) / values.size for values in (ours, theirs)]
    total = sum(parts)
    shares = sum(part**2 / (values.size - 1) for part, values in zip(parts, (ours, theirs), strict=True))
    freedom = total**2 / shares if shares else 2.0 * (n - 1)
    return Change(float(ours.mean() - theirs.mean()), total**0.5, freedom, n, looks)


def accuracy_drop(lost: float, won: float, n: int) -> Change:
    """Of accuracies on the same n samples, of which `lost` were right before and `won` are right now, and the others
    are as they were. Bonett and Price's, as `stats.accuracy_difference`."""
    p, q = (lost + 1) / (n + 2), (won + 1) / (n + 2)
    return Change((lost - won) / n, ((p + q - (p - q) ** 2) / (n + 2)) ** 0.5, n=n, centre=p - q)


def accuracy_drop_apart(old_right: float, old_n: int, new_right: float, new_n: int) -> Change:
    """Of accuracies on different samples, by Agresti and Caffo (2000): one right and one wrong answer added to each."""
    p, q = (old_right + 1) / (old_n + 2), (new_right + 1) / (new_n + 2)
    variance = p * (1 - p) / (old_n + 2) + q * (1 - q) / (new_n + 2)
    return Change(old_right / old_n - new_right / new_n, variance**0.5, n=min(old_n, new_n), centre=p - q)


def f1_drop(new: NDArray[Any], old: NDArray[Any], labels: NDArray[Any]) -> Change:
    """Of micro F1 on the same samples [N, C]: normal, with the interval of `stats.f1_difference`."""
    found = stats.f1_difference(old, new, labels)
    return Change(found.value, (found.high - found.low) / 2 / _z(), n=len(labels), centre=(found.low + found.high) / 2)


def disagreement(different: float, n: int) -> Change:
    """Of samples without labels: accuracy can neither fall nor rise by more than the share that is answered otherwise.

    That share's upper limit by Clopper and Pearson (1934) bounds it on either side.
    """
    from scipy import special

    high = 1.0 if different >= n else float(special.betaincinv(different + 1, n - different, 1 - ERROR))
    return Change(0.0, high / _z(), n=n)


def _z() -> float:
    from scipy import special

    return -float(special.ndtri(ERROR))


# --- looks ------------------------------------------------------------------------------------------------------------


def next_look(rounds: int, first: int = FIRST_LOOK) -> int:
    """The number of rounds at which the first look after so many is."""
    look = first
    while look <= rounds:
        look = math.ceil(GROWTH * look)
    return look


def looks_of(rounds: int, first: int = FIRST_LOOK) -> float:
    """k · (k + 1) of the k-th look, which is at so many rounds; the last one may be between two that are planned."""
    number, look = 1, first
    while look < rounds:
        number, look = number + 1, math.ceil(GROWTH * look)
    return float(number * (number + 1))


# --- decisions --------------------------------------------------------------------------------------------------------


def decide(changes: Sequence[Change | None], bounds: Sequence[float]) -> list[Outcome]:
    """The outcome of each comparison among all of them; None, of which nothing is known, can't be told."""
    known = [(change, bound) for change, bound in zip(changes, bounds, strict=True) if change is not None]
    adjusted = iter(stats.holm([change.p_within(bound) for change, bound in known]))
    return [
        "can't tell" if change is None else _outcome(change, bound, next(adjusted))
        for change, bound in zip(changes, bounds, strict=True)
    ]


def _outcome(change: Change, bound: float, p: float) -> Outcome:
    if p <= ERROR:
        return "beyond"
    return "within" if change.limits()[1] <= bound else "can't tell"


def decided(change: Change | None, bound: float, comparisons: int) -> bool:
    """Whether one of so many comparisons is decided by itself, whatever comes of the others."""
    if change is None:
        return False
    return _outcome(change, bound, min(1.0, comparisons * change.p_within(bound))) != "can't tell"


def enough_for(at: Callable[[int], Change], seen: int, bound: float, comparisons: int, most: int) -> int | None:
    """How many rounds or samples would about decide one of so many comparisons, were the estimate the truth.

    `at` gives the change as it would be known from so many; None where more than `most` would be needed.
    """
    wanted = float(max(seen, 2))
    while wanted <= most:
        wanted = max(wanted * 1.1, wanted + 1)
        if decided(at(int(wanted)), bound, comparisons):
            return int(wanted)
    return None
