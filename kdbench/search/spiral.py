"""Turn by turn to a smaller model: a step is taken where its accuracy is above a floor, or else halved.

What a turn does is a function that is given: nothing here knows of models, so that the search is tested with made-up
ones.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from kdbench.records.turns import Limit, Refusal
from kdbench.stats import ROUNDING

REACHED = 1e-6
"""Shares are counted in whole channels, parameters and bytes."""


@dataclass(frozen=True)
class Plan:
    """What a turn is asked for."""

    number: int
    """From 1."""
    parent: int
    """Number of the accepted turn that it starts from; 0 for the first model."""
    step: float
    keep: float
    """Share of the parent's cost to keep: 1 − step, or more where the target is nearer."""


@dataclass(frozen=True)
class Outcome:
    """What came of a turn."""

    drop: float | None = None
    """Below the first model, as a share; None where it was not judged, as it is refused in any case."""
    share: float | None = None
    """Of the first model's cost, so much is left; None for a drop too large to ask."""
    refusal: Refusal | None = None
    """Why it can't be taken, whatever its accuracy."""


@dataclass(frozen=True)
class Bounds:
    """When turns end."""

    goal: float
    """Share of the first model's cost to reach; 0 where only the accuracy ends it."""
    max_drop: float
    """As a share, of the point estimate."""
    step: float
    """Share of the cost that the first turn takes away."""
    smallest_step: float
    turns: int
    """At most, refused ones too."""


@dataclass(frozen=True)
class Ended:
    """Why it ended, and with what."""

    limit: Limit
    best: int
    """Number of the last accepted turn; 0 where that is the first model."""
    refused: Mapping[int, Refusal]
    """By number of the turn; all others were accepted."""
    turns: int
    """That there were: of an earlier call's, which may have had other bounds, some may not be among them."""


def spiral(make: Callable[[Plan], Outcome], bounds: Bounds, past: Sequence[tuple[Plan, Outcome]] = ()) -> Ended:
    """Turns until the goal is reached, or a limit is met. A step stays as small as a refusal has made it.

    `past` are turns of an earlier call: as long as they are what would be asked for now, they are not made again. The
    same outcomes end the same way wherever it was stopped. A turn that took nothing away ends it at once, since a
    smaller step takes no more.
    """
    at, share, step = 0, 1.0, bounds.step
    refused: dict[int, Refusal] = {}
    known = list(past)
    last: Refusal | None = None

    def limit() -> Limit | None:
        if share <= bounds.goal + REACHED:
            return "target"
        if last == "nothing":
            return "nothing"
        if step < bounds.smallest_step:
            return "accuracy" if last in ("accuracy", "repeated") else "step"
        return None

    for number in range(1, bounds.turns + 1):
        ended = limit()
        if ended:
            return Ended(ended, at, refused, number - 1)
        plan = Plan(number, at, step, max(1 - step, bounds.goal / share))
        if known and known[0][0] == plan:
            outcome = known.pop(0)[1]
        else:
            known, outcome = [], make(plan)
        last = refusal(outcome, bounds.max_drop)
        if last is None:
            assert outcome.share is not None
            at, share = number, outcome.share
        else:
            refused[number] = last
            step /= 2
    return Ended(limit() or "turns", at, refused, bounds.turns)


def refusal(outcome: Outcome, max_drop: float) -> Refusal | None:
    """Why the outcome of a turn isn't taken; None where it is."""
    if outcome.refusal is not None:
        return outcome.refusal
    if outcome.drop is None or not outcome.drop <= max_drop + ROUNDING:
        return "accuracy"
    return None
