"""How many points NEW loses: of accuracy or micro F1, or at most, where samples have no labels."""

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kdbench import stats
from kdbench.report.gate import deciding
from kdbench.report.gate.deciding import Change
from kdbench.report.gate.sides import Side
from kdbench.report.gate.undecided import Open, rounded

NO_CLASSES = "{}'s outputs are no classes that could be compared"
"""As those of a regression are none."""


def judged(old: Side, new: Side, bound: float) -> list[Open]:
    """By rung, backend and threads: all batches share their answers. What failed to answer is left to `failures`."""
    found: dict[tuple[str, str, int], Open] = {}
    for key in old.cells:
        rung, backend, threads, *_ = key
        theirs, was = old.answers(key), old.evaluation(key)
        unanswered = theirs is None and not (old.result.inputs == "data" and was and was.error is None)
        if unanswered or key not in new.cells or (rung, backend, threads) in found:
            continue
        ours, evaluation = new.answers(key), new.evaluation(key)
        fields = {"rung": rung, "backend": backend, "threads": threads, "bound": -bound}
        if theirs is None:
            found[rung, backend, threads] = _untold(fields, bound, NO_CLASSES.format("OLD"))
        elif ours is not None:
            found[rung, backend, threads] = _answered(old, new, fields, theirs, ours, bound)
        elif new.cells[key][0].error is None and (evaluation is None or evaluation.error is None):
            unjudged = evaluation is None or new.result.inputs != "data"
            why = "NEW has no answers: bench it with the --pack of OLD" if unjudged else NO_CLASSES.format("NEW")
            found[rung, backend, threads] = _untold(fields, bound, why)
    return list(found.values())


def _untold(fields: dict[str, Any], bound: float, why: str) -> Open:
    return Open({"quantity": "accuracy", **fields}, None, bound, untold=why)


def _answered(
    old: Side, new: Side, fields: dict[str, Any], theirs: NDArray[Any], ours: NDArray[Any], bound: float
) -> Open:
    labels, expected = new.arrays.get("labels"), old.arrays.get("labels")
    same = _same_samples(old, new) and theirs.shape == ours.shape
    if same and labels is None and expected is None:
        return _alike(fields, theirs, ours, bound)
    if labels is None or expected is None or labels.ndim != expected.ndim:
        return _untold(fields, bound, "not judged on the same samples and labels: bench both with one --pack")
    if labels.ndim == 2:
        if same:
            return _f1(fields, theirs, ours, labels, bound)
        return _untold(
            {**fields, "quantity": "F1"}, bound, "not judged on the same samples: bench both with one --pack"
        )
    right, was = ours == labels, theirs == expected
    fields |= {"quantity": "accuracy", "old": float(was.mean()), "new": float(right.mean())}
    if same:
        n, lost, won = right.size, int(np.sum(was & ~right)), int(np.sum(right & ~was))
        return Open(
            fields,
            deciding.accuracy_drop(lost, won, n),
            bound,
            lambda wanted: deciding.accuracy_drop(lost * wanted / n, won * wanted / n, wanted),
            settle=_more_samples(n),
        )
    fields["notes"] = ("judged on other samples than before: their difference is not paired, and known less well",)
    p, q, n = float(was.mean()), float(right.mean()), min(was.size, right.size)
    return Open(
        fields,
        deciding.accuracy_drop_apart(p * was.size, was.size, q * right.size, right.size),
        bound,
        lambda wanted: deciding.accuracy_drop_apart(p * wanted, wanted, q * wanted, wanted),
        settle=lambda needed: f"{_more_samples(n)(needed)}, or fewer that both answer",
    )


def _same_samples(old: Side, new: Side) -> bool:
    """Of one pack, or of the same labels in the same order."""
    if old.result is new.result:
        return True
    ours, theirs = new.arrays.get("labels"), old.arrays.get("labels")
    if new.result.inputs_sha256 is not None and new.result.inputs_sha256 == old.result.inputs_sha256:
        return True
    return ours is not None and theirs is not None and np.array_equal(ours, theirs)


def _f1(fields: dict[str, Any], old: NDArray[Any], new: NDArray[Any], labels: NDArray[Any], bound: float) -> Open:
    scores = {"old": stats.f1(old, labels)[0], "new": stats.f1(new, labels)[0]}
    change = deciding.f1_drop(new, old, labels)

    def at(n: int) -> Change:
        return Change(change.value, change.error * (change.n / n) ** 0.5, n=n, centre=change.centre)

    return Open({**fields, "quantity": "F1", **scores}, change, bound, at, settle=_more_samples(len(labels)))


def _alike(fields: dict[str, Any], old: NDArray[Any], new: NDArray[Any], bound: float) -> Open:
    """Of samples without labels, of which each that is answered otherwise may be one that is now wrong."""
    n, alike = len(new), stats.agreement(new, old)
    different = round(n * (1 - alike))
    return Open(
        {**fields, "quantity": "agreement", "new": alike},
        deciding.disagreement(different, n),
        bound,
        lambda wanted: deciding.disagreement(different * wanted / n, wanted),
        settle=lambda needed: f"{_more_samples(n)(needed)}, or labels for these",
    )


def _more_samples(seen: int) -> Callable[[int], str]:
    return lambda needed: f"about {rounded(needed)} evaluation samples would tell, there were {seen}"
