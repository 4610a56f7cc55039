"""By what share NEW is slower: of two models that took turns, or of two measurements."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from kdbench import stats
from kdbench.progress import duration
from kdbench.report.gate import deciding
from kdbench.report.gate.deciding import Change
from kdbench.report.gate.sides import Key, Side
from kdbench.report.gate.undecided import Open, rounded

STOPPED = (1 - stats.LEVEL) / (1 - stats.STOPPED_LEVEL)
"""Looks that rounds which end at a narrow interval count as."""


def timed(old: Side, new: Side, bound: float) -> list[Open]:
    """One for each cell that both have numbers of, but for a baseline in both, which is what others are measured by."""
    cells = [key for key in old.cells if key in new.cells and old.medians(key) and new.medians(key)]
    if old.result is new.result:
        return [_in_turns(old, new, key, bound) for key in cells]
    yardsticks = {key: _yardstick(old, new, key) for key in cells}
    return [_apart(old, new, key, yardsticks[key], bound) for key in cells if yardsticks[key] != key]


def _in_turns(old: Side, new: Side, key: Key, bound: float) -> Open:
    """Both in each round's processes: paired by round."""
    theirs, ours = old.medians(key), new.medians(key)
    rounds = sorted(theirs.keys() & ours.keys())
    logs = [[math.log(values[number]) for number in rounds] for values in (ours, theirs)]
    first = new.result.settings.processes
    change = deciding.paired(logs[0], logs[1], deciding.looks_of(len(rounds), first))

    def settle(needed: int) -> str:
        budget_s = rounded(1.1 * needed / len(rounds) * max(_spent_s(new), new.result.settings.budget_s))
        return f"about {needed} rounds would tell, there were {len(rounds)}: --budget {budget_s} ({duration(budget_s)})"

    return _of(old, new, key, change, bound, settle, lambda n: deciding.looks_of(n, first))


def _yardstick(old: Side, new: Side, key: Key) -> Key | None:
    """The cell of the baseline in the same place, where both files have measured the same file there."""
    if old.result.baseline != new.result.baseline:
        return None
    base = (new.result.baseline, *key[1:])
    if not all(base in side.cells and side.medians(base) for side in (old, new)):
        return None
    return base if old.artifact(base).sha256 == new.artifact(base).sha256 else None


def _apart(old: Side, new: Side, key: Key, yardstick: Key | None, bound: float) -> Open:
    """In two files: by ratios to the same baseline, in which the machine's own changes cancel, else by latencies."""
    stopped = any(side.result.settings.precision is not None for side in (old, new))
    looks = STOPPED if stopped else 1.0
    logs = [_logs(side, key, yardstick) for side in (new, old)]
    change = deciding.unpaired(logs[0], logs[1], looks)
    note = "latencies of two jobs, without a baseline that both measured: the machine may have changed meanwhile"
    if yardstick is not None:
        note = f"by its speed-up against {yardstick[0]}, the same file in both: what the machine itself changed cancels"

    def settle(needed: int) -> str:
        settings, seen = new.result.settings, min(map(len, logs))
        budget_s = rounded(1.1 * needed / seen * max(_spent_s(new), settings.budget_s))
        share = "" if settings.precision is None else f"--precision {settings.precision * (seen / needed) ** 0.5:.2g} "
        return (
            f"about {needed} processes on either side would tell, there were {seen}: bench both again with {share}"
            f"--budget {budget_s}, or compare the models themselves, in one job"
        )

    return _of(old, new, key, change, bound, settle, lambda n: looks, (note,))


def _logs(side: Side, key: Key, yardstick: Key | None) -> list[float]:
    """Of each process's median latency, against the baseline's of its round where there is one."""
    medians = side.medians(key)
    if yardstick is None:
        return [math.log(value) for value in medians.values()]
    base = side.medians(yardstick)
    return [math.log(medians[number] / base[number]) for number in sorted(medians.keys() & base.keys())]


def _of(
    old: Side,
    new: Side,
    key: Key,
    change: Change | None,
    bound: float,
    settle: Callable[[int], str],
    looks: Callable[[int], float],
    notes: Sequence[str] = (),
) -> Open:
    def at(n: int) -> Change:
        assert change is not None
        return Change(change.value, change.error * (change.n / n) ** 0.5, n - 1, n, looks(n))

    theirs, ours = (float(np.median(list(side.medians(key).values()))) for side in (old, new))
    said = {side.name: side.cells[key][0].flags for side in (old, new)}
    fields = {
        "quantity": "speed",
        **_place(key),
        "old": theirs,
        "new": ours,
        "bound": bound,
        "notes": (*notes, *_flags(said[old.name], said[new.name])),
    }
    return Open(
        fields,
        change,
        math.log1p(bound),
        at,
        deciding.MOST_ROUNDS,
        settle,
        unit="rounds",
        untold="fewer than two processes on a side: bench again",
        shown=math.expm1,
    )


def _place(key: Key) -> dict[str, Any]:
    return dict(zip(("rung", "backend", "threads", "batch", "dims"), key, strict=True))


def _flags(old: Sequence[str], new: Sequence[str]) -> list[str]:
    """Of both cells; the same flag of both is said once."""
    both = [f"old and new: {flag}" for flag in old if flag in new]
    return [*both, *(f"old: {f}" for f in old if f not in new), *(f"new: {f}" for f in new if f not in old)]


def _spent_s(side: Side) -> float:
    """From the first slice of the whole measurement to the last."""
    begun = [values for name, values in side.arrays.items() if name.startswith("start_s.")]
    return max((float(np.nanmax(values)) for values in begun), default=0.0)
