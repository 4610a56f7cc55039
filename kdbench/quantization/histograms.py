"""The range of values that eight bits are spread over, from a histogram of a tensor's values.

Clipping the rarest values makes the steps of all others smaller. Each rule is a function from a Histogram and the
options to a range; RULES has them by name.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from kdbench.errors import pick
from kdbench.records import Quantize

Range = tuple[float, float]

QUANTIZED_BINS = 128
"""Levels that the entropy rule compares a histogram with: onnxruntime's."""

SMOOTHING = 1e-4
"""What the entropy rule gives a bin that is empty, taken from those that are not: onnxruntime's."""

SHARES = np.arange(1, 101) / 100
"""Of the lowest and of the highest value: where the mse rule may clip."""

MOST_ROUNDS = 8
"""In which the mse rule improves either end."""


@dataclass(frozen=True, eq=False)
class Histogram:
    """How often a tensor took which values."""

    lowest: float
    highest: float
    width: float
    """Of a bin."""
    counts: NDArray[np.int64]
    """Of the bins [edge, edge + width), as many below 0 as above; empty where only the range was asked for."""

    @property
    def edges(self) -> NDArray[np.float64]:
        """Of the bins: one more than there are."""
        half = len(self.counts) // 2
        return np.arange(-half, half + 1) * self.width

    def clipped(self, low: float, high: float) -> Range:
        """A range without what no value was in."""
        return max(float(low), self.lowest), min(float(high), self.highest)


def trimmed(lowest: float, highest: float, width: float, counts: NDArray[np.int64]) -> Histogram:
    """A histogram [2 · N] without the bins beyond the largest magnitude, on either side."""
    half = len(counts) // 2
    used = max(int(np.floor(highest / width)) + 1, int(np.ceil(-lowest / width)), 1)
    return Histogram(lowest, highest, width, counts[half - used : half + used])


def minmax(histogram: Histogram, options: Quantize) -> Range:
    """All values."""
    return histogram.lowest, histogram.highest


def percentile(histogram: Histogram, options: Quantize) -> Range:
    """The middle `options.percentile` percent of the values, of their magnitudes where the range is symmetric.

    Each end is the outer edge of the bin that holds the quantile: at most one bin beyond the exact one.
    """
    counts, share = histogram.counts, options.percentile / 100
    if options.symmetric:
        half = len(counts) // 2
        within = np.cumsum(counts[half:] + counts[:half][::-1])
        bound = (np.searchsorted(within, share * within[-1]) + 1) * histogram.width
        return histogram.clipped(-bound, bound)
    below = np.cumsum(counts)
    left, right = np.searchsorted(below, np.array([(1 - share) / 2, (1 + share) / 2]) * below[-1])
    return histogram.clipped(histogram.edges[left], histogram.edges[right + 1])


def entropy(histogram: Histogram, options: Quantize) -> Range:
    """The range about 0 whose QUANTIZED_BINS levels lose least: the smallest Kullback–Leibler divergence of the
    histogram, with what lies beyond added to its ends, from its copy in levels.

    The rule of onnxruntime's `get_entropy_threshold` (Migacz, "8-bit inference with TensorRT", 2017), with its ways: a
    level is the whole number below the mean of its bins that are not empty, and what is left over after the last level
    counts as empty. There, each of some thousand candidates costs seconds of loops; here all are one matrix.
    """
    half = len(histogram.counts) // 2
    if half < QUANTIZED_BINS // 2:
        return histogram.lowest, histogram.highest
    reach = np.arange(QUANTIZED_BINS // 2, half + 1)
    start, end = half - reach, np.minimum(half + reach + 1, 2 * half)
    best = int(np.argmin(divergences(histogram.counts, start, end)))
    return histogram.clipped(histogram.edges[start[best]], histogram.edges[end[best]])


def divergences(counts: NDArray[np.int64], start: NDArray[np.int64], end: NDArray[np.int64]) -> NDArray[np.float64]:
    """The divergence of each candidate [C], the bins from `start` to before `end`, from its copy in levels.

    With p the candidate's N counts and q those of its copy, either smoothed (a bin with 0 gets SMOOTHING, which the
    others pay in equal parts e): Σ p/N · log(p/N) − Σ p/N · log(q/Σq). q is the same in all bins of a level, so that
    the second sum is one over levels; and the first one, Σ (c − e) · log(c − e), is expanded in the small e about sums
    that are the same for all candidates. All sums of bins are differences of cumulative sums.
    """
    c = counts.astype(np.float64)
    total, size = c.sum(), end - start
    count, used = _cumulative(c), _cumulative(c > 0)

    # The ends of p take what lies beyond them.
    first, last = c[start] + count[start], c[end - 1] + total - count[end]
    first_used, last_used = (first > 0).astype(float), (last > 0).astype(float)
    inner_used = used[end - 1] - used[start + 1]
    p_used = inner_used + first_used + last_used
    taken = SMOOTHING * (size - p_used) / p_used

    # Σ (c − e) log(c − e) = Σ c log c − e Σ (log c + 1) + e²/2 Σ 1/c + e³/6 Σ 1/c² + e⁴/12 Σ 1/c³ + …
    ones = np.where(c > 0, c, 1.0)
    powers = [ones * np.log(ones), -(np.log(ones) + (c > 0)), (c > 0) / ones / 2, (c > 0) / ones**2 / 6]
    powers.append((c > 0) / ones**3 / 12)
    sums = (_cumulative(power) for power in powers)
    own = sum(taken**order * (found[end - 1] - found[start + 1]) for order, found in enumerate(sums))
    own += first_used * _xlogx(first - taken) + last_used * _xlogx(last - taken)
    own += (size - p_used) * SMOOTHING * np.log(SMOOTHING)

    # Levels: of equally many bins, the last bins being left over.
    merged = size // QUANTIZED_BINS
    bounds = start[:, None] + merged[:, None] * np.arange(QUANTIZED_BINS + 1)
    mass, filled = np.diff(count[bounds]), np.diff(used[bounds])
    left_over = count[end] - count[bounds[:, -1]]
    whole = bounds[:, -1] == end
    filled[:, 0] += first_used - (c[start] > 0)
    filled[:, -1] += np.where(whole, last_used - (c[end - 1] > 0), 0.0)
    levels = mass.copy()
    levels[:, -1] += left_over
    levels = np.floor(np.divide(levels, filled, out=np.zeros_like(levels), where=filled > 0))
    q_used = merged * np.count_nonzero(levels, axis=1)
    q_total = merged * levels.sum(axis=1)
    paid = SMOOTHING * (size - q_used) / np.maximum(q_used, 1)

    mass[:, 0] += first - c[start]
    mass[:, -1] += np.where(whole, last - c[end - 1], 0.0)
    smoothed = mass - taken[:, None] * filled + SMOOTHING * (merged[:, None] - filled)
    rest = total - mass.sum(axis=1)
    rest += (SMOOTHING * (end - bounds[:, -1])) - (taken + SMOOTHING) * (p_used - filled.sum(axis=1))
    heights = np.where(levels > 0, levels - paid[:, None], SMOOTHING)
    crossed = (smoothed * np.log(heights)).sum(axis=1) + rest * np.log(SMOOTHING)
    with np.errstate(divide="ignore"):
        found = (own - crossed) / total - np.log(total) + np.log(q_total)
    return np.where(q_used > 0, found, np.inf)


def mse(histogram: Histogram, options: Quantize) -> Range:
    """The range with the smallest expected squared error of quantized values, each taken for the middle of its bin.

    Either end is one of SHARES of the lowest or highest value, improved in turn until both stay.
    """
    used = np.flatnonzero(histogram.counts)
    values, counts = histogram.edges[used] + histogram.width / 2, histogram.counts[used].astype(np.float64)
    low, high = min(histogram.lowest, 0.0), max(histogram.highest, 0.0)
    if low == high:
        return histogram.lowest, histogram.highest
    if options.symmetric:
        bounds = SHARES * max(-low, high)
        best = bounds[np.argmin(squared_errors(values, counts, -bounds, bounds, symmetric=True))]
        return histogram.clipped(-best, best)
    lows, highs = SHARES * low, SHARES * high
    for _ in range(MOST_ROUNDS):
        before = low, high
        high = highs[np.argmin(squared_errors(values, counts, np.full_like(highs, low), highs))]
        low = lows[np.argmin(squared_errors(values, counts, lows, np.full_like(lows, high)))]
        if (low, high) == before:
            break
    return histogram.clipped(low, high)


def squared_errors(
    values: NDArray[np.float64],
    counts: NDArray[np.float64],
    lows: NDArray[np.float64],
    highs: NDArray[np.float64],
    symmetric: bool = False,
) -> NDArray[np.float64]:
    """Of each range [R]: the mean squared difference between values [V] and what 8 bits make of them.

    As onnxruntime spreads them: 255 steps with 0 at a whole number of them; 254 where the range is symmetric.
    """
    steps = 254 if symmetric else 255
    scales = (highs - lows)[:, None] / steps
    zeros = np.full_like(scales, 127) if symmetric else np.round(-lows[:, None] / scales)
    levels = np.clip(np.round(values / scales) + zeros, 0, steps) - zeros
    found: NDArray[np.float64] = (counts * np.square(levels * scales - values)).sum(axis=1) / counts.sum()
    return found


Rule = Callable[[Histogram, Quantize], Range]

RULES: Mapping[str, Rule] = {"minmax": minmax, "percentile": percentile, "entropy": entropy, "mse": mse}


def range_of(histogram: Histogram, options: Quantize) -> Range:
    """By the rule that the options name."""
    return pick(RULES, options.calibration, "calibration")(histogram, options)


def _cumulative(values: NDArray[np.generic]) -> NDArray[np.float64]:
    """Sums of the first 0, 1, … values."""
    return np.concatenate(([0.0], np.cumsum(values, dtype=np.float64)))


def _xlogx(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """x · log x, and 0 where x is not positive."""
    return values * np.log(np.where(values > 0, values, 1.0))
