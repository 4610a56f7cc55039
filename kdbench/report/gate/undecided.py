"""A comparison before it is decided, and what would decide it."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from kdbench.records.gate import Check, Outcome
from kdbench.report.gate.deciding import MOST_SAMPLES, Change, enough_for


@dataclass(frozen=True)
class Open:
    """A comparison that is not decided yet, in the units of its change: more is worse."""

    fields: dict[str, Any]
    """Of its `Check`, as far as they are known."""
    change: Change | None
    bound: float
    at: Callable[[int], Change] | None = None
    """The change as it would be known from so many rounds or samples."""
    most: int = MOST_SAMPLES
    settle: Callable[[int], str] = str
    """What so many of them take."""
    unit: str = "samples"
    untold: str = ""
    """Where there is no change, why not, and what would tell."""
    shown: Callable[[float], float] = field(default=lambda value: -value)
    """A change as the `Check` has it."""


def check(one: Open, outcome: Outcome, comparisons: int) -> Check:
    """One of so many comparisons, decided."""
    fields = {**one.fields, "outcome": outcome}
    if one.change is None:
        return Check(**fields, settle=one.untold)
    low, high = one.change.limits()
    fields |= {"change": one.shown(one.change.value), "seen": one.change.n}
    fields["low"], fields["high"] = sorted((one.shown(low), one.shown(high)))
    if outcome != "can't tell":
        return Check(**fields)
    return Check(**fields, settle=_settling(one, one.change, comparisons))


def _settling(one: Open, change: Change, comparisons: int) -> str:
    """What would settle a comparison that can't be told."""
    among = ""
    if change.limits()[0] > one.bound:
        among = f"beyond the bound by itself, but of {comparisons} comparisons some come out so by chance; "
    if one.at is None:
        return among.rstrip("; ")
    needed = enough_for(one.at, change.n, one.bound, comparisons, one.most)
    if needed is None:
        return f"{among}the change is as good as the bound: more {one.unit} would not tell, another bound would"
    return f"{among}{one.settle(needed)}"


def rounded(amount: float) -> int:
    """Up, to two digits."""
    step = int(10 ** max(0, math.floor(math.log10(max(amount, 1))) - 1))
    return math.ceil(amount / step) * step
