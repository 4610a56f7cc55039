"""All comparisons of a gate, decided together."""

from dataclasses import dataclass

from kdbench.records.gate import Check
from kdbench.report.gate import deciding
from kdbench.report.gate.answers import judged
from kdbench.report.gate.sides import Side
from kdbench.report.gate.timing import timed
from kdbench.report.gate.undecided import check


@dataclass(frozen=True)
class Bounds:
    """As shares: 0.05 is 5 % slower, 5 points of accuracy, a file larger by 5 %."""

    slowdown: float
    drop: float
    growth: float | None
    """None where files may be of any size."""


def checks(old: Side, new: Side, bounds: Bounds) -> tuple[Check, ...]:
    """All comparisons of cells that both sides have numbers of, decided together."""
    found = [*timed(old, new, bounds.slowdown), *judged(old, new, bounds.drop)]
    outcomes = deciding.decide([one.change for one in found], [one.bound for one in found])
    sizes = [] if bounds.growth is None else _sizes(old, new, bounds.growth)
    return (*(check(one, outcome, len(found)) for one, outcome in zip(found, outcomes, strict=True)), *sizes)


def _sizes(old: Side, new: Side, bound: float) -> list[Check]:
    """Of each rung's file."""
    found = {}
    for key in old.cells:
        if key in new.cells:
            before, after = (side.artifact(key).size_bytes for side in (old, new))
            growth = after / before - 1
            found[key[0]] = Check(
                quantity="size",
                rung=key[0],
                old=before,
                new=after,
                change=growth,
                bound=bound,
                outcome="beyond" if after > before * (1 + bound) + 1e-6 else "within",
            )
    return list(found.values())
