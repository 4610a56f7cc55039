"""The comparison of methods: one row a method, over all of its seeds, computed from raw predictions on reading."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kdbench import stats
from kdbench.errors import UserError
from kdbench.records import Comparison, Distill, Schedule, Trial
from kdbench.report.text import (
    DASH,
    Cell,
    Column,
    Shown,
    TextTable,
    decimals,
    fixed,
    interval_cell,
    number_cell,
    points,
    table_of,
)
from kdbench.stats import Interval
from kdbench.store import Arrays

TEACHER, ALONE, DISTILLED = "teacher", "alone", "distilled"
"""How names of teachers begin, the first of whom counts; the student by labels alone; and by the recipe's `distill`."""


@dataclass(frozen=True)
class Mean:
    """Of `n` seeds; the sample's standard deviation is None for one."""

    value: float
    std: float | None
    n: int


@dataclass(frozen=True)
class MethodRow:
    """A method over its seeds. Its score is accuracy, micro F1 where samples have any number of labels, or agreement
    with the teacher where the evaluation samples have none."""

    method: str
    last: Mean
    """The score after the last epoch."""
    best: Mean | None
    """Of the epoch that was best on the held-out samples."""
    f1_macro: Mean | None
    """After the last epoch, where samples have any number of labels."""
    agreement: Mean | None
    """Share of samples on which the last epoch answers as the teacher does."""
    gain: float | None
    """Score minus that of the student alone on the same seeds."""
    gain_interval: Interval | None
    """Of the gain, paired by seed; None for fewer than two seeds."""
    gap_closed: float | None
    """Share of the way from the student alone to the teacher; None where the teacher is not ahead."""


def method_rows(comparison: Comparison, arrays: Arrays) -> list[MethodRow]:
    """The teacher, and each method in the order of the trials."""
    labels = arrays.get("labels")
    last, best = (_by_method(comparison.trials, kept) for kept in ("last", "best"))
    teacher, expected = _teacher(last, arrays)

    def scores(trials: Sequence[Trial]) -> list[float]:
        return [_score(arrays[f"predictions.{trial.raw}"], labels, expected) for trial in trials]

    ceiling, alone = scores(last[teacher])[0] if teacher else None, last.get(ALONE, [])
    rows = []
    for method, trials in last.items():
        ours, floors = scores(trials), scores(alone)
        student = not method.startswith(TEACHER)
        against = student and method != ALONE and [t.seed for t in trials] == [t.seed for t in alone]
        gain = float(np.mean(ours) - np.mean(floors)) if against else None
        gap = ceiling - float(np.mean(floors)) if against and ceiling is not None else 0.0
        answers = [arrays[f"predictions.{trial.raw}"] for trial in trials]
        several = labels is not None and labels.ndim == 2
        rows.append(
            MethodRow(
                method=method,
                last=_mean(ours),
                best=_mean(scores(best[method])) if method in best else None,
                f1_macro=_mean([stats.f1(a, labels)[1] for a in answers]) if several and labels is not None else None,
                agreement=(
                    _mean([stats.agreement(a, expected) for a in answers]) if student and expected is not None else None
                ),
                gain=gain,
                gain_interval=stats.paired_difference(ours, floors) if against else None,
                gap_closed=gain / gap if gain is not None and gap > 0 else None,
            )
        )
    return rows


def _teacher(last: Mapping[str, Sequence[Trial]], arrays: Arrays) -> tuple[str | None, NDArray[Any] | None]:
    """The teacher that counts, and its answers; teachers of a part of the classes are not among the trials."""
    teacher = next((method for method in last if method.startswith(TEACHER)), None)
    return teacher, arrays[f"predictions.{last[teacher][0].raw}"] if teacher else None


def scores_of(comparison: Comparison, arrays: Arrays) -> dict[str, dict[int, float]]:
    """The score of each method after the last epoch, by seed."""
    last = _by_method(comparison.trials, "last")
    _, expected = _teacher(last, arrays)
    labels = arrays.get("labels")
    return {
        method: {trial.seed: _score(arrays[f"predictions.{trial.raw}"], labels, expected) for trial in trials}
        for method, trials in last.items()
    }


def score_name(arrays: Arrays) -> str:
    """The heading of a comparison's scores."""
    labels = arrays.get("labels")
    return "agree %" if labels is None else "acc. %" if labels.ndim == 1 else "F1 µ %"


def comparison_table(comparison: Comparison, arrays: Arrays) -> TextTable:
    """Percent and points, mean ± standard deviation over seeds; footnotes say what each method's losses are."""
    rows = method_rows(comparison, arrays)
    labels = arrays.get("labels")
    losses = {row.method: losses_of(comparison, row.method) for row in rows}
    notes = {row.method: number for number, row in enumerate((row for row in rows if losses[row.method]), 1)}

    def method(row: MethodRow) -> Cell:
        return Cell(row.method, row.method, notes=(notes[row.method],) if row.method in notes else ())

    shown: list[Shown[MethodRow]] = [
        Shown(Column("method", "method", left=True), method),
        Shown(Column("seeds", "seeds"), lambda row: number_cell(row.last.n, str)),
        Shown(Column(score_name(arrays), "score"), lambda row: spread_cell(row.last)),
        Shown(Column("best %", "best"), lambda row: spread_cell(row.best)),
        Shown(Column("F1 macro %", "f1_macro"), lambda row: spread_cell(row.f1_macro)),
        Shown(Column("gain, points", "gain"), gain_cell),
        Shown(Column("gap closed", "gap_closed"), lambda row: number_cell(row.gap_closed, _share)),
    ]
    if labels is not None:
        shown.append(Shown(Column("agree %", "agreement"), lambda row: spread_cell(row.agreement)))
    shown = [
        one
        for one in shown
        if one.column.key not in ("best", "f1_macro") or any(getattr(row, one.column.key) for row in rows)
    ]
    table = table_of(f"{comparison.name}: students by method", shown, rows)
    return replace(table, notes=tuple(filter(None, losses.values())))


def _score(answers: NDArray[Any], labels: NDArray[Any] | None, expected: NDArray[Any] | None) -> float:
    if labels is None:
        if expected is None:
            raise UserError(
                "data: evaluation samples have no labels, and no teacher knows all classes: nothing to judge by"
            )
        return stats.agreement(answers, expected)
    return float(np.mean(answers == labels)) if labels.ndim == 1 else stats.f1(answers, labels)[0]


def _by_method(trials: Sequence[Trial], kept: str) -> dict[str, list[Trial]]:
    found: dict[str, list[Trial]] = {}
    for trial in trials:
        if trial.kept == kept:
            found.setdefault(trial.method, []).append(trial)
    return found


def _mean(values: Sequence[float]) -> Mean:
    return Mean(float(np.mean(values)), float(np.std(values, ddof=1)) if len(values) > 1 else None, len(values))


def spread_cell(mean: Mean | None) -> Cell:
    """`92.31 ± 0.12`, in percent, with as many digits as the deviation supports."""
    if mean is None:
        return Cell(DASH)
    if mean.std is None:
        return Cell(f"{100 * mean.value:.2f}", mean.value)
    places = decimals(100 * mean.std, 100 * mean.value)
    return Cell(f"{fixed(100 * mean.value, places)} ± {fixed(100 * mean.std, places)}", mean.value)


def gain_cell(row: MethodRow) -> Cell:
    """`+0.52 [−0.10, 1.14]`, without an interval for one seed."""
    if row.gain is None:
        return Cell(DASH)
    if row.gain_interval is None:
        return Cell(fixed(100 * row.gain, 2, plus=True), row.gain)
    return interval_cell(row.gain_interval, points)


def _share(value: float) -> str:
    return f"{100 * value:.0f} %".replace("-", "−")


def losses_of(comparison: Comparison, method: str) -> str | None:
    """A method's losses as a sum: `0.1 cross_entropy + 0.9 kd, temperature 4`."""
    recipe = comparison.recipe
    distill = recipe.distill if method == DISTILLED else recipe.methods.get(method)
    return _sum(distill) if distill else None


def _sum(distill: Distill) -> str:
    terms = " + ".join(f"{_value(loss.weight)} {name}" for name, loss in distill.losses.items())
    return f"{terms}, temperature {distill.temperature:g}"


def _value(schedule: Schedule) -> str:
    return f"{schedule.start:g}" if schedule.start == schedule.end else f"{schedule.start:g}…{schedule.end:g}"
