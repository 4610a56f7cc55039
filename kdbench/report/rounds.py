"""Cells round by round: what a number varies by from process to process, and whether one is told from another.

The process is the unit of replication, as everywhere: cells are compared by the differences of a round's logarithms.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kdbench import stats
from kdbench.data.sizes import written
from kdbench.records import Measurement
from kdbench.report.rows import Row
from kdbench.report.table import Ladder
from kdbench.stats import Interval

Logs = Mapping[int, float]
"""The logarithm of a number, by round."""


def cell_of(ladder: Ladder, row: Row) -> Measurement | None:
    """The raw cell behind a row."""
    key = (row.rung, row.backend, row.batch, row.threads, row.dims)
    return next(
        (m for m in ladder.result.measurements if (m.rung, m.backend, m.batch, m.threads, written(m.dims)) == key), None
    )


def latency_logs(ladder: Ladder, row: Row) -> Logs:
    """Of the median latency of each process, in seconds; empty for a cell without a number."""
    return _logs(ladder, row, np.median)


def throughput_logs(ladder: Ladder, row: Row) -> Logs:
    """Of the samples a second of each process."""
    return {number: math.log(row.batch) - value for number, value in _logs(ladder, row, np.mean).items()}


def _logs(ladder: Ladder, row: Row, statistic: Callable[[NDArray[np.float64]], np.floating[Any]]) -> Logs:
    m = cell_of(ladder, row)
    if m is None or m.raw is None or m.error is not None:
        return {}
    latencies, rounds = ladder.arrays[f"latencies.{m.raw}"], ladder.arrays[f"rounds.{m.raw}"]
    return {
        int(number): math.log(float(statistic(latencies[rounds == number].astype(np.float64))))
        for number in np.unique(rounds)
    }


def level_of(ladder: Ladder) -> float:
    """Of the quantile behind a 95 % interval: a higher one where rounds went on until it was narrow."""
    return stats.LEVEL if ladder.result.settings.precision is None else stats.STOPPED_LEVEL


def around(value: float | None, logs: Logs, level: float) -> Interval | None:
    """The number with the interval that its processes' spread gives it; None for fewer than two of them."""
    found = stats.paired_difference(list(logs.values()), [0.0] * len(logs), level) if len(logs) > 1 else None
    if value is None or found is None:
        return None
    reach = math.exp(found.value - found.low)
    return Interval(value, value / reach, value * reach)


def difference(ours: Logs, theirs: Logs, level: float) -> Interval | None:
    """Of the logarithms, over the rounds that both have; None for fewer than two."""
    rounds = sorted(ours.keys() & theirs.keys())
    return stats.paired_difference([ours[r] for r in rounds], [theirs[r] for r in rounds], level)


def ratio(slow: Logs, fast: Logs, level: float) -> Interval | None:
    """How many times larger the first is than the second, paired by round."""
    found = difference(slow, fast, level)
    return found and Interval(math.exp(found.value), math.exp(found.low), math.exp(found.high))
