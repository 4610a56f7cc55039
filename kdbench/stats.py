"""Percentiles, intervals and tests: pure functions on numbers."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

SMALLEST_N = {50.0: 11, 90.0: 64, 95.0: 130, 99.0: 662, 99.9: 6636}
"""Samples under which a percentile is not printed: MLPerf inference's early stopping, at 99 % confidence."""

LEVEL = 0.95
"""Of every interval."""


@dataclass(frozen=True)
class Interval:
    value: float
    low: float
    high: float


def percentile(values: ArrayLike, q: float) -> float | None:
    """The q-th percentile (0 < q < 100), or None where there are fewer than `SMALLEST_N[q]` values."""
    array = np.asarray(values, dtype=np.float64)
    return float(np.percentile(array, q)) if array.size >= SMALLEST_N[q] else None


def speedup(baseline_s: Sequence[float], candidate_s: Sequence[float]) -> Interval | None:
    """How many times faster the candidate is than the baseline.

    Each argument holds one median latency a process, paired by round. A Student t-interval of the mean difference of
    their logarithms, taken back to a ratio: the process is the unit of replication. None for fewer than two pairs.
    """
    found = paired_difference(np.log(baseline_s), np.log(candidate_s))
    return found and Interval(float(np.exp(found.value)), float(np.exp(found.low)), float(np.exp(found.high)))


def paired_difference(values: ArrayLike, baseline: ArrayLike) -> Interval | None:
    """Mean of `values` minus `baseline`, pair by pair, with a Student t-interval; None for fewer than two pairs."""
    from scipy import stats

    ours, theirs = np.asarray(values, dtype=np.float64), np.asarray(baseline, dtype=np.float64)
    if ours.shape != theirs.shape:
        raise ValueError("pairs needed: as many of the one as of the other")
    difference = ours - theirs
    n = difference.size
    if n < 2:
        return None
    mean = float(difference.mean())
    half = float(stats.t.ppf((1 + LEVEL) / 2, n - 1) * difference.std(ddof=1) / np.sqrt(n))
    return Interval(mean, mean - half, mean + half)


def no_difference(ratio: Interval) -> bool:
    """Whether the interval of a ratio covers 1."""
    return ratio.low <= 1.0 <= ratio.high


def accuracy_difference(correct: NDArray[np.bool_], baseline_correct: NDArray[np.bool_]) -> Interval:
    """Accuracy of the candidate minus the baseline's on the same samples, with an interval for paired proportions.

    Bonett and Price (2012, Journal of Educational and Behavioral Statistics 37): a Wald interval with one sample added
    to each kind of disagreement. Unlike a bootstrap, which shrinks to a point where the two never disagree, it keeps
    its coverage for the few disagreements that a good student leaves.
    """
    from scipy import stats

    if correct.shape != baseline_correct.shape or correct.size == 0:
        raise ValueError("both need answers to the same samples")
    n = correct.size
    won = int(np.sum(correct & ~baseline_correct))
    lost = int(np.sum(~correct & baseline_correct))
    p, q = (won + 1) / (n + 2), (lost + 1) / (n + 2)
    half = float(stats.norm.ppf((1 + LEVEL) / 2)) * ((p + q - (p - q) ** 2) / (n + 2)) ** 0.5
    return Interval((won - lost) / n, max(p - q - half, -1.0), min(p - q + half, 1.0))


def mcnemar(correct: NDArray[np.bool_], baseline_correct: NDArray[np.bool_]) -> float:
    """p-value of McNemar's exact test: a two-sided binomial test on the samples that only one of them has right."""
    from scipy import stats

    won = int(np.sum(correct & ~baseline_correct))
    lost = int(np.sum(~correct & baseline_correct))
    return float(stats.binomtest(won, won + lost, 0.5).pvalue) if won + lost else 1.0


def process_medians(latencies: NDArray[Any], rounds: NDArray[Any]) -> dict[int, float]:
    """The median latency of each round's process."""
    return {int(r): float(np.median(latencies[rounds == r])) for r in np.unique(rounds)}
