"""The comparison of methods: one row a method, over all of its seeds, computed from raw predictions on reading."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from kdbench import stats
from kdbench.records import Comparison, Distill, Schedule, Trial
from kdbench.report.text import TextTable, mark
from kdbench.stats import Interval
from kdbench.store import Arrays

ALONE, DISTILLED = "alone", "distilled"
"""The student by labels alone, and by the recipe's own `distill`."""


@dataclass(frozen=True)
class Mean:
    """Of `n` seeds; the sample's standard deviation is None for one."""

    value: float
    std: float | None
    n: int


@dataclass(frozen=True)
class MethodRow:
    """A method over its seeds. Accuracies are shares of the evaluation samples."""

    method: str
    last: Mean
    """Accuracy after the last epoch."""
    best: Mean | None
    """Of the epoch that was best on the held-out samples."""
    agreement: Mean | None
    """Share of samples on which the last epoch answers as the teacher does."""
    gain: float | None
    """Accuracy minus that of the student alone on the same seeds."""
    gain_interval: Interval | None
    """Of the gain, paired by seed; None for fewer than two seeds."""
    gap_closed: float | None
    """Share of the way from the student alone to the teacher; None where the teacher is not ahead."""


def method_rows(comparison: Comparison, arrays: Arrays, teacher: str = "teacher") -> list[MethodRow]:
    """The teacher, and each method in the order of the trials."""
    labels = arrays["labels"]
    last = _by_method(comparison.trials, "last")
    best = _by_method(comparison.trials, "best")

    def accuracies(trials: Sequence[Trial]) -> list[float]:
        return [float(np.mean(arrays[f"predictions.{trial.raw}"] == labels)) for trial in trials]

    expected = arrays[f"predictions.{last[teacher][0].raw}"]
    ceiling = accuracies(last[teacher])[0]
    alone = last.get(ALONE, [])
    rows = []
    for method, trials in last.items():
        ours = accuracies(trials)
        student = method != teacher and not method.startswith("teacher-")
        against = student and method != ALONE and [t.seed for t in trials] == [t.seed for t in alone]
        floor = float(np.mean(accuracies(alone))) if alone else None
        agreements = [float(np.mean(arrays[f"predictions.{trial.raw}"] == expected)) for trial in trials]
        rows.append(
            MethodRow(
                method=method,
                last=_mean(ours),
                best=_mean(accuracies(best[method])) if method in best else None,
                agreement=_mean(agreements) if student else None,
                gain=float(np.mean(ours)) - floor if against and floor is not None else None,
                gain_interval=stats.paired_difference(ours, accuracies(alone)) if against else None,
                gap_closed=(float(np.mean(ours)) - floor) / (ceiling - floor)
                if against and floor is not None and ceiling > floor
                else None,
            )
        )
    return rows


def comparison_table(comparison: Comparison, arrays: Arrays) -> TextTable:
    """Percent and points, mean ± standard deviation over seeds; footnotes say what each method's losses are."""
    rows = method_rows(comparison, arrays)
    with_best = any(row.best for row in rows)
    notes = []
    cells = []
    for row in rows:
        losses = _losses(comparison, row.method)
        if losses:
            notes.append(losses)
        name = f"{row.method} {mark(len(notes))}" if losses else row.method
        best = [_spread(row.best)] if with_best else []
        gap = "–" if row.gap_closed is None else f"{100 * row.gap_closed:.0f} %".replace("-", "−")
        cells.append((name, str(row.last.n), _spread(row.last), *best, _points(row), gap, _spread(row.agreement)))
    header = ("method", "seeds", "acc. %", *(["best %"] if with_best else []), "gain, points", "gap closed", "agree %")
    return TextTable(f"{comparison.name}: students by method", header, tuple(cells), tuple(notes))


def _by_method(trials: Sequence[Trial], kept: str) -> dict[str, list[Trial]]:
    found: dict[str, list[Trial]] = {}
    for trial in trials:
        if trial.kept == kept:
            found.setdefault(trial.method, []).append(trial)
    return found


def _mean(values: Sequence[float]) -> Mean:
    return Mean(float(np.mean(values)), float(np.std(values, ddof=1)) if len(values) > 1 else None, len(values))


def _spread(mean: Mean | None) -> str:
    """`92.31 ± 0.12`, in percent."""
    if mean is None:
        return "–"
    return f"{100 * mean.value:.2f}" + ("" if mean.std is None else f" ± {100 * mean.std:.2f}")


def _points(row: MethodRow) -> str:
    """`+0.52 [−0.10, 1.14]`, without an interval for one seed."""
    if row.gain is None:
        return "–"
    interval = row.gain_interval
    limits = f" [{100 * interval.low:.2f}, {100 * interval.high:.2f}]" if interval else ""
    return f"{100 * row.gain:+.2f}{limits}".replace("-", "−")


def _losses(comparison: Comparison, method: str) -> str | None:
    """A method's losses as a sum: `0.1 cross_entropy + 0.9 kd, temperature 4`."""
    recipe = comparison.recipe
    distill = recipe.distill if method == DISTILLED else recipe.methods.get(method)
    return _sum(distill) if distill else None


def _sum(distill: Distill) -> str:
    terms = " + ".join(f"{_value(loss.weight)} {name}" for name, loss in distill.losses.items())
    return f"{terms}, temperature {distill.temperature:g}"


def _value(schedule: Schedule) -> str:
    return f"{schedule.start:g}" if schedule.start == schedule.end else f"{schedule.start:g}…{schedule.end:g}"
