"""Scenarios as rows: one a cell under load, computed from loadgen's runs and their raw latencies on reading."""

from collections.abc import Callable
from dataclasses import dataclass, fields
from statistics import median

import numpy as np

from kdbench import stats
from kdbench.data.sizes import written
from kdbench.records import Artifact, LoadTest, ResultFile, ScenarioMeasurement, ScenarioName
from kdbench.report.flags import flags
from kdbench.report.rows import interval
from kdbench.stats import Interval
from kdbench.store import Arrays


@dataclass(frozen=True)
class ScenarioRow:
    """A cell under load. Its fields are the columns of the CSV, in their order; None where there is no number."""

    rung: str
    parent: str | None
    backend: str
    precision: str
    scenario: ScenarioName
    batch: int
    threads: int
    sessions: int
    bound_s: float | None
    score: float | None = None
    """Accuracy, micro F1, or agreement with the baseline."""
    latency_s: float | None = None
    """By early stopping, the processes' median: p90 of single stream, else p99, of a server at its highest rate."""
    rate_per_s: float | None = None
    """Samples a second: completed in the offline scenario, a server's highest rate; the processes' median."""
    speedup: float | None = None
    """Of the latency in single and multi stream, else of the rate, against the baseline under the same load."""
    speedup_low: float | None = None
    speedup_high: float | None = None
    queries: int | None = None
    """Of each run; samples in the offline scenario."""
    processes: int = 0
    """That have given a number."""
    flags: tuple[str, ...] = ()
    error: str | None = None
    dims: str = ""
    """Sizes of symbolic dimensions, such as `height=32 width=32`."""
    spent_s: float | None = None
    """In loadgen's runs, of all processes together."""
    machine: str = ""
    """Its name, and that of the result."""
    result: str = ""

    @property
    def ratio(self) -> Interval | None:
        """The speed-up against the baseline."""
        return interval(self.speedup, self.speedup_low, self.speedup_high)


COLUMNS = tuple(field.name for field in fields(ScenarioRow))

Key = tuple[ScenarioName, str, int, int, int, str]


def scenario_rows(
    result: ResultFile, arrays: Arrays, score: Callable[[ScenarioMeasurement], float | None]
) -> tuple[ScenarioRow, ...]:
    """In the order of the measurements; `score` tells how good a cell's answers are."""
    artifacts = {artifact.rung: artifact for artifact in result.artifacts}
    baselines = {load_of(m): m for m in result.scenarios if m.rung == result.baseline}
    return tuple(
        _row(result, artifacts[m.rung], m, baselines.get(load_of(m)), score(m), arrays) for m in result.scenarios
    )


def load_of(m: ScenarioMeasurement | ScenarioRow) -> Key:
    """What cells of one table share."""
    dims = m.dims if isinstance(m, ScenarioRow) else written(m.dims)
    return m.scenario, m.backend, m.threads, m.batch, m.sessions, dims


def found_by_round(m: ScenarioMeasurement) -> dict[int, LoadTest]:
    """The run of each process that counts: of a server the one that confirms its highest rate."""
    return {test.round: test for test in m.tests if _counts(test)}


def _counts(test: LoadTest) -> bool:
    return test.step == "measure" or (test.step == "confirm" and test.valid)


def _row(
    result: ResultFile,
    artifact: Artifact,
    m: ScenarioMeasurement,
    baseline: ScenarioMeasurement | None,
    score: float | None,
    arrays: Arrays,
) -> ScenarioRow:
    times = {} if m.error else _times(m)
    tests = found_by_round(m)
    ratio = _ratio(baseline, m) if baseline and baseline.rung != m.rung else None
    # Where some processes have not met the bound, that is what is said of them.
    met = m if len(times) == len({test.round for test in m.tests}) else m.model_copy(update={"error": ""})
    evaluation = next((e for e in result.evaluations if (e.rung, e.backend, e.threads) == _judged(m)), None)
    rates = [rate for test in tests.values() if (rate := _rate(m, test)) is not None] if times else []
    latencies = _latencies(m, arrays) if times else []
    return ScenarioRow(
        rung=m.rung,
        parent=artifact.parent,
        backend=m.backend,
        precision=m.precision,
        scenario=m.scenario,
        batch=m.batch,
        threads=m.threads,
        sessions=m.sessions,
        bound_s=m.bound_s,
        score=score,
        latency_s=median(latencies) if latencies else None,
        rate_per_s=median(rates) if rates else None,
        speedup=ratio.value if ratio else None,
        speedup_low=ratio.low if ratio else None,
        speedup_high=ratio.high if ratio else None,
        queries=min((test.queries for test in tests.values()), default=None),
        processes=len(times),
        flags=(*flags(result, artifact, met, evaluation, None, times), *_flags(m)),
        error=m.error,
        dims=written(m.dims),
        spent_s=m.spent_s,
        machine=result.machine.name,
        result=result.name,
    )


def _judged(m: ScenarioMeasurement) -> tuple[str, str, int]:
    return m.rung, m.backend, m.threads


def _rate(m: ScenarioMeasurement, test: LoadTest) -> float | None:
    return test.rate_per_s if m.scenario == "server" else test.completed_per_s


def _latencies(m: ScenarioMeasurement, arrays: Arrays) -> list[float]:
    """Of each process: loadgen's estimate; of a server, where loadgen gives a verdict only, what that would pass."""
    if m.scenario == "server" and m.raw is not None:
        raw, rounds = arrays[f"scenarios.{m.raw}"], arrays[f"scenario_rounds.{m.raw}"]
        found = [stats.smallest_bound(raw[rounds == number], 99.0) for number in np.unique(rounds)]
    else:
        found = [test.estimate_s for test in m.tests if _counts(test)]
    return [value for value in found if value is not None]


def _times(m: ScenarioMeasurement) -> dict[int, float]:
    """What each process is compared by, as a time: a latency, or seconds a sample."""
    found = {}
    for number, test in found_by_round(m).items():
        rate = _rate(m, test)
        if m.scenario in ("server", "offline"):
            if rate:
                found[number] = 1 / rate
        elif test.estimate_s is not None:
            found[number] = test.estimate_s
    return found


def _ratio(baseline: ScenarioMeasurement, m: ScenarioMeasurement) -> Interval | None:
    if baseline.error is not None or m.error is not None:
        return None
    slow, fast = _times(baseline), _times(m)
    rounds = sorted(slow.keys() & fast.keys())
    return stats.speedup([slow[r] for r in rounds], [fast[r] for r in rounds])


def _flags(m: ScenarioMeasurement) -> tuple[str, ...]:
    """What loadgen finds wrong with runs that count, and which processes found no rate."""
    if m.error is not None:
        return ()
    invalid = [reason for test in m.tests if test.step == "measure" and not test.valid for reason in test.reasons]
    said = [f"loadgen: invalid: {reason}" for reason in dict.fromkeys(invalid)]
    if m.scenario == "server":
        tried, found = {test.round for test in m.tests}, found_by_round(m)
        if len(found) < len(tried):
            said.append(f"the bound was met in {len(found)} of {len(tried)} processes: the median is of these")
    return tuple(said)
