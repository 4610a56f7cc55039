"""Cells with the intervals of their latency and throughput, and the runs of each of their processes."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kdbench import stats
from kdbench.data.sizes import written
from kdbench.report.rows import Row, place
from kdbench.report.table import Ladder
from kdbench.stats import Interval


@dataclass(frozen=True)
class Timed:
    row: Row
    latency: Interval
    """Median of all runs, in seconds."""
    throughput: Interval
    """Samples a second."""
    processes: dict[int, NDArray[Any]]
    """Latencies in seconds, by round."""


def timed(ladder: Ladder) -> list[Timed]:
    """The cells that were measured, in their order."""
    level = stats.LEVEL if ladder.result.settings.precision is None else stats.STOPPED_LEVEL
    measurements = {(m.rung, m.backend, m.threads, m.batch, written(m.dims)): m for m in ladder.result.measurements}
    found = []
    for row in ladder.rows:
        m = measurements[row.rung, *place(row)]
        if row.latency_p50_s is None or row.throughput_per_s is None:
            continue
        latencies = ladder.arrays[f"latencies.{m.raw}"].astype(np.float64)
        rounds = ladder.arrays[f"rounds.{m.raw}"]
        processes = {int(number): latencies[rounds == number] for number in np.unique(rounds)}
        medians = [float(np.median(own)) for own in processes.values()]
        rates = [row.batch / float(own.mean()) for own in processes.values()]
        latency, throughput = _around(row.latency_p50_s, medians, level), _around(row.throughput_per_s, rates, level)
        found.append(Timed(row, latency, throughput, processes))
    return found


def _around(value: float, of_processes: Sequence[float], level: float) -> Interval:
    """The value of all runs, and the t-interval of the logarithms of its processes' values: of one process none."""
    found = stats.speedup(of_processes, [1.0] * len(of_processes), level)
    return Interval(value, min(value, found.low), max(value, found.high)) if found else Interval(value, value, value)
