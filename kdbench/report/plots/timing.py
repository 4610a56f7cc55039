"""Cells with the intervals of their latency and throughput, and the runs of each of their processes."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kdbench.report import rounds
from kdbench.report.rows import Row
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
    """The cells that were measured, in their order, with the intervals that the tables have too."""
    level, found = rounds.level_of(ladder), []
    for row in ladder.rows:
        m = rounds.cell_of(ladder, row)
        if m is None or row.latency_p50_s is None or row.throughput_per_s is None:
            continue
        latencies = ladder.arrays[f"latencies.{m.raw}"].astype(np.float64)
        numbers = ladder.arrays[f"rounds.{m.raw}"]
        processes = {int(number): latencies[numbers == number] for number in np.unique(numbers)}
        latency = _around(row.latency_p50_s, rounds.latency_logs(ladder, row), level)
        throughput = _around(row.throughput_per_s, rounds.throughput_logs(ladder, row), level)
        found.append(Timed(row, latency, throughput, processes))
    return found


def _around(value: float, logs: rounds.Logs, level: float) -> Interval:
    """Of one process none."""
    return rounds.around(value, logs, level) or Interval(value, value, value)
