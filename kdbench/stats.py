"""Percentiles, intervals and tests: pure functions on numbers."""

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

SMALLEST_N = {50.0: 11, 90.0: 64, 95.0: 130, 99.0: 662, 99.9: 6636}
"""Samples under which a percentile is not printed: MLPerf inference's early stopping, at 99 % confidence."""

LEVEL = 0.95
"""Of every interval."""
ROUNDING = 1e-9
"""Of a share of samples: a budget of 0.7 points is 0.006999…, and 7 of 1,000 samples, meant by it, are 0.007."""

STOPPED_LEVEL = 0.96
"""Of the t quantile behind a ratio's 95 % interval where rounds went on until it was narrow (`enough`).

Who stops at a narrow interval stops more often where the spread happens to be underestimated. With the quantile of 95 %
that costs up to 3 points of coverage, with this one the simulated coverage lies from 93 to 97 %, whatever the spread:
`python benchmarks/bench.py coverage`.
"""

STOPPED_TWICE_LEVEL = 0.98
"""Of a comparison of two ratios, both of rounds that went on until they seemed to be known well enough (`same_mean`).

Both spreads are then underestimated more often, and the smaller the p-value, the more so: of ratios that are one and
the same, up to 6 % are told apart at this level, instead of 2 (`python benchmarks/bench.py reruns`).
"""

POWER = 0.9
"""With which the smallest difference that a comparison could have found would have been found."""

OUTLIER = 14.826
"""Median absolute deviations: ten standard deviations, were the latencies normal (hyperfine's bound)."""

RESOLUTION_S, RESOLUTION = 1e-7, 1e-3
"""A smaller median absolute deviation than that, in seconds and as a share of the median, is the clock's grain."""


@dataclass(frozen=True)
class Interval:
    value: float
    low: float
    high: float


def percentile(values: ArrayLike, q: float) -> float | None:
    """The q-th percentile (0 < q < 100), or None where there are fewer than `SMALLEST_N[q]` values."""
    array = np.asarray(values, dtype=np.float64)
    return float(np.percentile(array, q)) if array.size >= SMALLEST_N[q] else None


def smallest_bound(values: ArrayLike, q: float) -> float | None:
    """The smallest bound that the q-th percentile keeps by MLPerf's rule for the server scenario, at 99 % confidence.

    Of n values, at most t lie above the percentile with the probability BinomCDF(t; n, 1 − q). With t the largest
    number for which that is at most 1 %, t values may lie above the bound: so it is the next largest one. None where
    there are too few values for any bound.
    """
    array = np.sort(np.asarray(values, dtype=np.float64))
    allowed = _allowed_above(array.size, q)
    return float(array[array.size - allowed - 1]) if allowed >= 0 else None


def _allowed_above(n: int, q: float) -> int:
    """The largest t with BinomCDF(t; n, 1 − q) ≤ 1 %, or −1."""
    from scipy import stats

    return int(np.sum(stats.binom.cdf(np.arange(n), n, 1 - q / 100) <= 0.01)) - 1


def speedup(baseline_s: Sequence[float], candidate_s: Sequence[float], level: float = LEVEL) -> Interval | None:
    """How many times faster the candidate is than the baseline.

    Each argument holds one median latency a process, paired by round. A Student t-interval of the mean difference of
    their logarithms, taken back to a ratio: the process is the unit of replication. None for fewer than two pairs.
    """
    found = paired_difference(np.log(baseline_s), np.log(candidate_s), level)
    return found and Interval(float(np.exp(found.value)), float(np.exp(found.low)), float(np.exp(found.high)))


def paired_difference(values: ArrayLike, baseline: ArrayLike, level: float = LEVEL) -> Interval | None:
    """Mean of `values` minus `baseline`, pair by pair, with a Student t-interval; None for fewer than two pairs."""
    ours, theirs = np.asarray(values, dtype=np.float64), np.asarray(baseline, dtype=np.float64)
    if ours.shape != theirs.shape:
        raise ValueError("pairs needed: as many of the one as of the other")
    difference = ours - theirs
    n = difference.size
    if n < 2:
        return None
    mean = float(difference.mean())
    half = _t(level, n - 1) * float(difference.std(ddof=1) / np.sqrt(n))
    return Interval(mean, mean - half, mean + half)


@functools.cache
def _t(level: float, freedom: int) -> float:
    """How many standard errors an interval of Student's t reaches to either side."""
    from scipy import stats

    return float(stats.t.ppf((1 + level) / 2, freedom))


def enough(baseline_s: Sequence[float], candidate_s: Sequence[float], precision: float) -> bool:
    """Whether the ratio's interval reaches no further than `precision`, a share of the ratio, to either side."""
    ratio = speedup(baseline_s, candidate_s, STOPPED_LEVEL)
    return ratio is not None and ratio.high <= ratio.value * (1 + precision)


def smallest_difference(
    baseline_s: Sequence[float], candidate_s: Sequence[float], level: float = LEVEL
) -> float | None:
    """By what share one had to be slower so that as many rounds, spread as these, find it with a power of `POWER`.

    Each argument holds one median latency a process, paired by round. The t-test of paired log latencies against 0
    follows a non-central t where they differ. None for fewer than three pairs, which tell too little of the spread.
    """
    difference = np.log(candidate_s) - np.log(baseline_s)
    n = difference.size
    if n < 3:
        return None
    return float(np.expm1(_findable(n - 1, level) * difference.std(ddof=1) / np.sqrt(n)))


@functools.cache
def _findable(freedom: int, level: float) -> float:
    """The non-centrality at which a two-sided t-test has a power of `POWER`."""
    from scipy import optimize, stats

    bound = _t(level, freedom)
    return float(
        optimize.brentq(lambda shift: POWER - stats.nct.sf(bound, freedom, shift), bound / 2, 4 * bound, xtol=1e-6)
    )


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


def proportion(right: int, of: int) -> Interval:
    """A share of samples with its interval by Wilson (1927), which stays within 0 and 1 and is none of width 0."""
    from scipy import stats

    found = stats.binomtest(right, of).proportion_ci(LEVEL, method="wilson")
    return Interval(right / of, float(found.low), float(found.high))


def agreement(answers: NDArray[Any], expected: NDArray[Any]) -> float:
    """Share of samples with the same answer, in all labels where these are [N, C]."""
    return float(np.mean((answers == expected).reshape(len(answers), -1).all(axis=1)))


def mcnemar(correct: NDArray[np.bool_], baseline_correct: NDArray[np.bool_]) -> float:
    """p-value of McNemar's exact test: a two-sided binomial test on the samples that only one of them has right."""
    from scipy import stats

    won = int(np.sum(correct & ~baseline_correct))
    lost = int(np.sum(~correct & baseline_correct))
    return float(stats.binomtest(won, won + lost, 0.5).pvalue) if won + lost else 1.0


def process_medians(latencies: NDArray[Any], rounds: NDArray[Any]) -> dict[int, float]:
    """The median latency of each round's process."""
    return {int(r): float(np.median(latencies[rounds == r])) for r in np.unique(rounds)}


@dataclass(frozen=True)
class Outliers:
    """Latencies more than `OUTLIER` median absolute deviations from the median of their own process."""

    count: int
    runs: int
    """Of which they are."""
    time: float
    """The share of the time of all runs that they took."""
    slowest_s: float


def outliers(latencies: NDArray[Any], rounds: NDArray[Any]) -> Outliers:
    """Counted process by process, since another process has another median; nothing is dropped."""
    values = latencies.astype(np.float64)
    far = np.zeros(values.size, dtype=bool)
    for number in np.unique(rounds):
        own = rounds == number
        median = float(np.median(values[own]))
        deviations = np.abs(values[own] - median)
        spread = max(float(np.median(deviations)), RESOLUTION_S, RESOLUTION * median)
        far[own] = deviations > OUTLIER * spread
    return Outliers(int(far.sum()), values.size, float(values[far].sum() / values.sum()), float(values.max()))


WARM_RUNS = 6
"""Fewer runs can't tell whether they get faster."""
WARMING = 0.02
"""Runs that get faster by less than this share are called warm."""


def warm(latencies: ArrayLike) -> bool | None:
    """Whether the runs of a fresh process have stopped getting faster; None for fewer than `WARM_RUNS`.

    They haven't where the last third is faster than the one before it: by more than `WARMING` in the median and, where
    the thirds are long enough for a test to tell, by a one-sided Mann-Whitney test at 5 %. The first third is cold.
    """
    from scipy import stats

    values = np.asarray(latencies, dtype=np.float64)
    third = values.size // 3
    if values.size < WARM_RUNS:
        return None
    before, last = values[-2 * third : -third], values[-third:]
    if np.median(last) >= (1 - WARMING) * np.median(before):
        return True
    return third >= 4 and bool(stats.mannwhitneyu(last, before, alternative="less").pvalue >= 1 - LEVEL)


@dataclass(frozen=True)
class Trend:
    change: float
    """From the first to the last value along the fitted line."""
    p: float
    """Of no trend at all."""


def trend(values: ArrayLike) -> Trend:
    """Kendall's rank correlation of a series with its order, and Theil and Sen's line through it.

    The p-value is exact for short series: five values that only rise have 2 / 5!, which is the least they can have.
    """
    from scipy import stats

    series = np.asarray(values, dtype=np.float64)
    order = np.arange(series.size)
    return Trend(
        float(stats.theilslopes(series, order).slope * (series.size - 1)),
        float(stats.kendalltau(order, series).pvalue),
    )


def f1(predicted: NDArray[Any], labels: NDArray[Any]) -> tuple[float, float]:
    """Micro and macro F1 of answers [N, C] of 0 and 1: 2·TP / (2·TP + FP + FN) over all labels, and the mean over them.

    As scikit-learn's `f1_score` with `zero_division=0`: a label that never occurs and is never predicted counts as 0.
    """
    right, asked = _f1_terms(predicted, labels)
    return float(_ratio(right.sum(), asked.sum())), float(_ratio(right.sum(axis=0), asked.sum(axis=0)).mean())


RESAMPLES = 2000
"""Of the bootstrap."""


def f1_difference(predicted: NDArray[Any], baseline: NDArray[Any], labels: NDArray[Any]) -> Interval:
    """Micro F1 of the candidate minus the baseline's on the same samples [N, C], with a percentile bootstrap interval.

    Samples are drawn, with all of their labels and both answers. Two are added from which each side alone has one label
    right: else the interval would shrink to a point where the two never disagree, as it does not in Bonett and Price's
    for accuracies. The draws are the same in every call.
    """
    if not predicted.shape == baseline.shape == labels.shape or not labels.size:
        raise ValueError("both need answers to the same samples")
    sums = [term.sum(axis=1) for answers in (predicted, baseline) for term in _f1_terms(answers, labels)]
    value = float(_ratio(sums[0].sum(), sums[1].sum()) - _ratio(sums[2].sum(), sums[3].sum()))
    added = [np.append(ours, two) for ours, two in zip(sums, ((2, 0), (2, 1), (0, 2), (1, 2)), strict=True)]

    def difference(*drawn: NDArray[np.int64], axis: int) -> NDArray[np.float64]:
        totals = [part.sum(axis=axis) for part in drawn]
        return _ratio(totals[0], totals[1]) - _ratio(totals[2], totals[3])

    return _percentile(added, difference, value)


def f1_interval(predicted: NDArray[Any], labels: NDArray[Any]) -> Interval:
    """Micro F1 of answers [N, C] with a percentile bootstrap interval over samples; the draws are always the same."""
    sums = [term.sum(axis=1) for term in _f1_terms(predicted, labels)]
    value = float(_ratio(sums[0].sum(), sums[1].sum()))
    if len(labels) < 2:
        return Interval(value, 0.0, 1.0)

    def micro(right: NDArray[np.int64], asked: NDArray[np.int64], axis: int) -> NDArray[np.float64]:
        return _ratio(right.sum(axis=axis), asked.sum(axis=axis))

    return _percentile(sums, micro, value)


def _percentile(parts: Sequence[NDArray[Any]], statistic: Callable[..., NDArray[np.float64]], value: float) -> Interval:
    """`value` with the percentile bootstrap interval of a statistic of sums over samples, the parts [N]."""
    from scipy import stats

    found = stats.bootstrap(
        parts,
        statistic,
        n_resamples=RESAMPLES,
        batch=max(1, 4_000_000 // len(parts[0])),
        vectorized=True,
        paired=True,
        confidence_level=LEVEL,
        method="percentile",
        rng=np.random.default_rng(0),
    ).confidence_interval
    return Interval(value, float(found.low), float(found.high))


def _f1_terms(predicted: NDArray[Any], labels: NDArray[Any]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """2·TP and 2·TP + FP + FN of each answer [N, C]."""
    predicted, labels = predicted.astype(np.int64), labels.astype(np.int64)
    return 2 * predicted * labels, predicted + labels


def _ratio(right: NDArray[np.int64], asked: NDArray[np.int64]) -> NDArray[np.float64]:
    """right / asked, 0 where nothing was asked."""
    return np.divide(right, asked, out=np.zeros(np.shape(right)), where=asked > 0)


def holm(p_values: Sequence[float]) -> list[float]:
    """p-values corrected for how many they are (Holm 1979): each one below a level is significant at that level, while
    of true null hypotheses the chance of any such one stays below it."""
    order = np.argsort(p_values, kind="stable")
    corrected, largest = [1.0] * len(p_values), 0.0
    for rank, index in enumerate(order):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[index]))
        corrected[index] = largest
    return corrected


def same_mean(first: ArrayLike, second: ArrayLike) -> float | None:
    """p-value of Welch's t-test that two samples have one mean; None for fewer than two values in either.

    Samples that don't vary at all are equal (1) or are not (0).
    """
    from scipy import stats

    ours, theirs = np.asarray(first, dtype=np.float64), np.asarray(second, dtype=np.float64)
    if min(ours.size, theirs.size) < 2:
        return None
    if ours.std() == 0 == theirs.std():
        return float(ours.mean() == theirs.mean())
    return float(stats.ttest_ind(ours, theirs, equal_var=False).pvalue)
