"""What the measurement itself casts doubt on: imprecise, disturbed or drifting numbers, each with what to try.

Files from a fixed number of rounds, before all of this was looked at, are shown as they were.
"""

from collections.abc import Sequence
from itertools import groupby
from math import ceil

import numpy as np
from numpy.typing import NDArray

from kdbench import stats
from kdbench.records import BenchSettings, Measurement, ResultFile
from kdbench.report.rows import Row
from kdbench.report.text import seconds
from kdbench.store import Arrays

MANY_OUTLIERS = 0.01
"""Share of the runs, or of their time, from which on they reach p99 or the throughput."""
DRIFT = 0.03
"""Smaller trends of the medians over a measurement are not worth a word."""
BUSY = 0.05
"""Share of the machine's CPU time that others may use."""
ENOUGH_S = 0.5
"""Of slices, in which the kernel's ticks tell what others did."""
CLOCK = 0.10
"""Share by which the clock may move."""


def doubts(result: ResultFile, row: Row, m: Measurement, far: stats.Outliers | None) -> list[str]:
    """Of one cell, whose outliers are known if it was measured."""
    return doubts_of(result.settings, row, m, far)


def doubts_of(settings: BenchSettings, row: Row, m: Measurement, far: stats.Outliers | None) -> list[str]:
    """The same without a result file."""
    if far is None or settings.precision is None:
        return []
    found = [_missed(row), _wide(row, settings.precision), _outliers(far), _cold(m)]
    return [doubt for doubt in found if doubt]


def disturbances(result: ResultFile, arrays: Arrays) -> dict[tuple[str, int], list[str]]:
    """What struck all cells of a backend and thread count alike."""
    return disturbances_of(result.settings, result.measurements, arrays)


def disturbances_of(
    settings: BenchSettings, measurements: Sequence[Measurement], arrays: Arrays
) -> dict[tuple[str, int], list[str]]:
    """The same without a result file."""
    found: dict[tuple[str, int], list[str]] = {}
    for place, group in groupby(measurements, key=lambda m: (m.backend, m.threads)):
        measured = [m for m in group if m.error is None and m.raw is not None]
        known = measured if settings.precision is not None else []
        said = (_drift(known, arrays), _neighbour(known, arrays), _clock(known, arrays), _quota(known))
        found[place] = [disturbance for disturbance in said if disturbance]
    return found


def _missed(row: Row) -> str | None:
    """What “no difference” means."""
    if row.speedup_low is None or row.speedup_high is None or row.smallest_difference is None:
        return None
    if not row.speedup_low <= 1 <= row.speedup_high:
        return None
    return f"no difference: one of {_share(row.smallest_difference)} would have been found nine times in ten"


def _wide(row: Row, precision: float) -> str | None:
    if row.speedup is None or row.speedup_high is None or row.speedup_high <= row.speedup * (1 + precision):
        return None
    wide = _share(ceil(1e4 * (row.speedup_high / row.speedup - 1)) / 1e4)  # never the same as what was asked for
    return f"known to ±{wide}, not to the ±{_share(precision)} asked for: raise --budget, or quiet the machine"


def _outliers(far: stats.Outliers) -> str | None:
    if max(far.count / far.runs, far.time) < MANY_OUTLIERS:
        return None
    return f"outliers: {far.count} of {far.runs} runs, the slowest {seconds(far.slowest_s)}; none is dropped"


def _cold(m: Measurement) -> str | None:
    cold = sum(process.warm is False for process in m.processes)
    if not cold:
        return None
    return f"still getting faster when timed: {cold} of {len(m.processes)} processes; raise --budget"


def _drift(measured: Sequence[Measurement], arrays: Arrays) -> str | None:
    """A trend over the rounds of which each cell shows at least a half."""
    medians = [stats.process_medians(arrays[f"latencies.{m.raw}"], arrays[f"rounds.{m.raw}"]) for m in measured]
    rounds = sorted(set.intersection(*map(set, medians))) if medians else []
    if len(rounds) < 5:
        return None
    logs = np.log([[own[number] for number in rounds] for own in medians])
    common = stats.trend(logs.mean(axis=0))
    change = float(np.expm1(common.change))
    if abs(change) < DRIFT or not common.p < 1 - stats.LEVEL:
        return None
    if any(stats.trend(own).change / common.change < 0.5 for own in logs):
        return None
    way = "slower" if change > 0 else "faster"
    return f"the machine drifted: all cells got {_share(abs(change))} {way} from the first round to the last"


def _facts(measured: Sequence[Measurement], arrays: Arrays, name: str) -> NDArray[np.float64]:
    """A fact of all slices of these cells, cell after cell; NaN where it isn't known."""
    parts = [
        arrays.get(f"{name}.{m.raw}", np.full(np.unique(arrays[f"slices.{m.raw}"]).size, np.nan)) for m in measured
    ]
    return np.concatenate([np.empty(0), *parts])


def _neighbour(measured: Sequence[Measurement], arrays: Arrays) -> str | None:
    share, wall_s = (_facts(measured, arrays, name) for name in ("others_share", "wall_s"))
    known = ~np.isnan(share) & ~np.isnan(wall_s)
    if wall_s[known].sum() < ENOUGH_S or (mean := float(np.average(share[known], weights=wall_s[known]))) < BUSY:
        return None
    return f"a busy neighbour: other processes used {_share(mean)} of the machine's CPU time: quiet it, and bench again"


def _clock(measured: Sequence[Measurement], arrays: Arrays) -> str | None:
    """A clock that fell in the course of the measurement, or that moved and latencies with it."""
    from scipy import stats as tests

    clock, start = (_facts(measured, arrays, name) for name in ("clock_hz", "start_s"))
    known = ~np.isnan(clock)
    if known.sum() < 9:
        return None
    order = np.argsort(start[known])
    ordered = clock[known][order]
    first, last = (float(np.median(third)) for third in (ordered[: len(order) // 3], ordered[-(len(order) // 3) :]))
    if last <= (1 - CLOCK) * first:
        return f"throttled: the CPU's clock fell from {first / 1e9:.2f} to {last / 1e9:.2f} GHz: let it cool down"
    low, high = np.percentile(ordered, [10, 90])
    if low > (1 - CLOCK) * high:
        return None
    latency = np.concatenate([_slices(m, arrays) for m in measured])
    together = tests.spearmanr(clock[known], latency[known])
    if not (together.statistic < -0.3 and together.pvalue < 0.01):
        return None
    return f"the CPU's clock moved between {low / 1e9:.2f} and {high / 1e9:.2f} GHz, and latencies with it: fix it"


def _slices(m: Measurement, arrays: Arrays) -> NDArray[np.float64]:
    """The logarithm of each slice's median, against the cell's."""
    _, first = np.unique(arrays[f"slices.{m.raw}"], return_index=True)
    logs = np.log([np.median(part) for part in np.split(arrays[f"latencies.{m.raw}"], first[1:])])
    return np.asarray(logs - np.median(logs))


def _quota(measured: Sequence[Measurement]) -> str | None:
    stopped = {process.round: process.throttled_s for m in measured for process in m.processes if process.throttled_s}
    if not stopped:
        return None
    rounds = len({process.round for m in measured for process in m.processes})
    whole = seconds(sum(stopped.values()))
    return (
        f"throttled by the container's CPU quota: stopped for {whole} in {len(stopped)} of {rounds} rounds; "
        "raise it, or lower --threads"
    )


def _share(value: float) -> str:
    return f"{100 * value:.3g} %"
