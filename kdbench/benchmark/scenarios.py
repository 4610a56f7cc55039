"""Measures MLPerf's scenarios by its loadgen, in fresh processes; the models of a round take turns, in random order.

All models of a group (backend, threads, sessions, batch, scenario) answer as many queries, in every round: an
early-stopping estimate of more queries is a closer bound of its percentile, so others could not be compared. A server
alone answers more where the run would be too short.
"""

import math
import random
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from itertools import groupby
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kdbench.backends.client import Worker, WorkerError
from kdbench.benchmark.cells import Cell, identity
from kdbench.benchmark.loads import Library, Load
from kdbench.benchmark.peak import Step, highest_rate
from kdbench.progress import Progress, duration, silent
from kdbench.records import BenchSettings, LoadTest, Process, ScenarioMeasurement, ScenarioName
from kdbench.stats import SMALLEST_N
from kdbench.store import Arrays

SAMPLES_PER_QUERY = 8
"""Of the multi-stream scenario."""

P90, P99 = SMALLEST_N[90.0], SMALLEST_N[99.0]
FEWEST: dict[ScenarioName, int] = {"single_stream": P90, "multi_stream": P99, "server": P99, "offline": 64}
"""Queries of a run; samples in the offline scenario."""
NEEDS: dict[ScenarioName, str] = {
    "single_stream": f"p90 takes {P90} queries",
    "multi_stream": f"p99 takes {P99} queries of {SAMPLES_PER_QUERY} samples",
    "server": f"a rate takes a search of {P99} queries a step",
    "offline": f"throughput takes {FEWEST['offline']} samples",
}
MOST: dict[ScenarioName, int] = {"single_stream": 4 * P99, "multi_stream": 4 * P99, "server": 4 * P99, "offline": 24576}
HOPELESS = 64
"""Queries at a rate that can't pass, as a single run takes longer than the bound."""

OVERRUN = 10
"""How many times its part of the budget a cell may take for the fewest queries that tell its percentile, or"""
LEAST_S = 60.0
"""that long, however small the budget."""

SHORTEST_S = 0.25
"""Of a server's run."""
KEEPS_UP = 0.9
"""Share of the arriving queries that a server completes in the same time: else its queue grows, and only the end of the
run keeps latencies below the bound."""
QUICKEST_S = 1e-4
"""A sample, for where a search begins."""

TESTS = 8
"""That a search takes, roughly."""
BUSY = 0.7
"""Of a server's time when it is at its highest rate, roughly."""
IDLEST = 1 / 32
"""Of a server's time at the lowest rate that is tried, unless that takes too long."""
LONGEST_S = 30.0
"""For the run at the lowest rate."""
NEAR = 1.2
"""Factor of a search that starts from what earlier processes have found."""


@dataclass
class _Record:
    """What has been measured of a cell so far."""

    load: Load
    error: str | None
    processes: list[Process] = field(default_factory=list)
    versions: dict[str, str] = field(default_factory=dict)
    tests: list[LoadTest] = field(default_factory=list)
    latencies: list[NDArray[np.float32]] = field(default_factory=list)
    rounds: list[int] = field(default_factory=list)
    spent_s: float = 0.0
    """In loadgen's runs."""


@dataclass(frozen=True)
class _Ready:
    """A process that has loaded its cell's model."""

    record: _Record
    worker: Worker
    library: Library
    alone_s: float
    """What a single sample takes, roughly, with nothing else to do."""
    batch_s: float
    """What a whole batch takes."""

    @property
    def sample_s(self) -> float:
        """What a sample takes when all sessions are busy."""
        return self.batch_s / (self.record.load.cell.batch * self.record.load.sessions)


class Loads:
    """The state of a measurement: `rounds()` measures, `records()` tells what has been measured so far."""

    def __init__(
        self,
        loads: Sequence[Load],
        settings: BenchSettings,
        libraries: Callable[[Cell], Library],
        patience_s: float = 60.0,
    ) -> None:
        """`libraries` gives a cell's samples; `patience_s` is how long a worker may stay silent beyond its work."""
        self.settings = settings
        self.libraries = libraries
        self.patience_s = patience_s
        self._records = [_Record(load, load.error) for load in loads]
        self._random = random.Random(settings.seed)  # noqa: S311 — an order, not a secret
        self._queries: dict[object, int] = {}
        self._groups = len({_group(load) for load in loads if load.error is None})
        self._files = {
            file: identity(file) for load in loads for file in [load.cell.backend.file(load.cell.subject.model)]
        }

    def rounds(self, progress: Progress = silent) -> Iterator[int]:
        """Measures round by round, and yields the number of each that is done."""
        start = time.monotonic()
        able = [record for record in self._records if record.error is None]
        groups = [list(group) for _, group in groupby(able, key=lambda record: _group(record.load))]
        total = self.settings.processes * len(groups)
        done = 0
        progress("bench", done, total)
        for number in range(self.settings.processes):
            for group in self._random.sample(groups, len(groups)):
                share_s = max(0.0, self.settings.budget_s - (time.monotonic() - start)) / (total - done)
                for part in self._measure(number, group, share_s):
                    progress("bench", done + part, total)
                done += 1
                progress("bench", done, total)
            yield number

    def records(self) -> tuple[list[ScenarioMeasurement], Arrays]:
        """Measurements of all cells, and their raw arrays: latencies in seconds, and each one's round."""
        measurements, arrays = [], Arrays()
        for index, record in enumerate(self._records):
            load, cell, raw = record.load, record.load.cell, None
            if record.latencies:
                raw = str(index)
                lengths = [len(latencies) for latencies in record.latencies]
                arrays[f"scenarios.{raw}"] = np.concatenate(record.latencies)
                arrays[f"scenario_rounds.{raw}"] = np.repeat(np.asarray(record.rounds, dtype=np.uint16), lengths)
            measurements.append(
                ScenarioMeasurement(
                    rung=cell.subject.artifact.rung,
                    artifact_sha256=cell.subject.artifact.sha256,
                    backend=cell.backend.label,
                    provider_options=cell.backend.options(cell.threads),
                    versions=record.versions,
                    precision=cell.subject.artifact.precision,
                    batch=cell.batch,
                    threads=cell.threads,
                    dims=dict(cell.dims),
                    processes=tuple(record.processes),
                    raw=raw,
                    error=record.error,
                    scenario=load.scenario,
                    sessions=load.sessions,
                    bound_s=load.bound_s,
                    spent_s=record.spent_s,
                    tests=tuple(record.tests),
                )
            )
        return measurements, arrays

    def _measure(self, number: int, group: Sequence[_Record], share_s: float) -> Iterator[float]:
        """One round of a group, in about `share_s`; yields the part of its models that is done."""
        able = [record for record in group if record.error is None]
        with ExitStack() as stack:
            ready: list[_Ready] = []
            for record in self._random.sample(able, len(able)):
                cell = record.load.cell
                try:
                    worker = stack.enter_context(Worker(cell.backend, cell.threads, self.patience_s))
                    ready.append(self._open(number, worker, record))
                except WorkerError as error:
                    record.error = str(error)
            if number == 0:
                part_s = self.settings.budget_s / self._groups / max(1, len(ready))
                ready = [one for one in ready if self._in_reason(one, part_s)]
            if not ready:
                return
            queries = self._queries.setdefault(_group(group[0].load), affordable(ready, share_s))
            for place, one in enumerate(self._random.sample(ready, len(ready)), 1):
                try:
                    if one.record.load.scenario == "server":
                        self._search(number, one, queries, time.monotonic() + share_s / len(ready))
                    else:
                        self._test(number, one, queries)
                except WorkerError as error:
                    one.record.error = str(error)
                yield place / len(ready)

    def _in_reason(self, one: _Ready, part_s: float) -> bool:
        """Whether the fewest queries don't overrun a cell's part of the budget beyond reason; it gets an error else."""
        load, processes = one.record.load, self.settings.processes
        if load.bound_s is not None and one.alone_s > load.bound_s:
            return True  # there is no rate to be found, and that takes few queries
        takes_s = processes * FEWEST[load.scenario] * _query_s([one])
        if takes_s <= max(OVERRUN * part_s, LEAST_S):
            return True
        enough_s = math.ceil(self.settings.budget_s * takes_s / (OVERRUN * part_s))
        one.record.error = (
            f"{NEEDS[load.scenario]}, in each of {processes} processes: about {duration(takes_s)}, and its part of "
            f"--budget is {duration(part_s)}: raise it to {enough_s}, or leave {load.scenario} out"
        )
        return False

    def _open(self, number: int, worker: Worker, record: _Record) -> _Ready:
        """Loads the model and looks how long it takes; raises WorkerError."""
        cell = record.load.cell
        model = cell.subject.model
        file = cell.backend.file(model)
        if identity(file) != self._files[file]:
            raise WorkerError(f"{file.name} was changed while it was measured: bench again", alive=True)
        samples = self.libraries(cell)
        record.versions = worker.hello()
        load_s = worker.load(model, first=samples.batch(cell.batch) if worker.backend.row.builds else None)
        first_run_s, peak = worker.feed("alone", samples.batch(1))
        record.processes.append(Process(round=number, load_s=load_s, first_run_s=first_run_s, peak_memory_bytes=peak))
        worker.feed("batch", samples.batch(cell.batch))
        alone_s, batch_s = (float(np.median(worker.slice(slot, 0.1, 20)[0])) for slot in ("alone", "batch"))
        worker.ask("library", samples.arrays, sessions=record.load.sessions, extra_s=load_s * record.load.sessions)
        return _Ready(record, worker, samples, alone_s, batch_s)

    def _search(self, number: int, one: _Ready, queries: int, deadline: float) -> None:
        """Looks for the highest rate, close to what earlier processes have found; an error where there is none."""
        record, bound_s = one.record, one.record.load.bound_s
        assert bound_s is not None
        earlier = [test.rate_per_s for test in record.tests if test.step == "confirm" and test.valid]
        start = median(rate for rate in earlier if rate) if earlier else 0.5 / max(one.sample_s, QUICKEST_S)
        lowest = min(start, max(IDLEST / one.alone_s, queries / LONGEST_S))
        if one.alone_s > bound_s:
            start = lowest = min(start, 0.5 / one.alone_s)
            queries = HOPELESS

        def passes(rate: float, step: Step) -> bool:
            return self._test(number, one, max(queries, math.ceil(SHORTEST_S * rate)), step, rate).valid

        found = highest_rate(passes, start, lowest, lambda: time.monotonic() < deadline, NEAR if earlier else 2.0)
        if found is None and not earlier:
            tried = min((test for test in record.tests if test.round == number), key=lambda test: test.rate_per_s or 0)
            record.error = (
                f"p99 ≤ {_time(bound_s)} is not met at any rate that was tried: at the lowest, {tried.rate_per_s:.3g} "
                f"queries a second, p99 was {_time(tried.percentile_s or math.nan)} ({tried.queries} queries)"
            )

    def _test(
        self, number: int, one: _Ready, queries: int, step: Step | None = None, rate: float | None = None
    ) -> LoadTest:
        """One run of loadgen, kept in the record; its latencies too, but of a search those of the last run alone."""
        record, load = one.record, one.record.load
        batch = one.library.fixed or load.cell.batch
        done = sum(test.round == number for test in record.tests)
        work_s = queries * max(one.alone_s, one.batch_s) * SAMPLES_PER_QUERY + (queries / rate if rate else 0)
        with TemporaryDirectory(prefix="kdbench-") as folder:
            settings: dict[str, Any] = {
                "scenario": load.scenario,
                "queries": queries,
                "samples_per_query": SAMPLES_PER_QUERY,
                "rate_per_s": rate,
                "bound_s": load.bound_s,
                "most_waiting": load.sessions * batch + max(64, math.ceil(4 * (rate or 0) * (load.bound_s or 0))),
                "batch": batch,
                "filled": one.library.fixed is not None,
                "shared": list(one.library.shared),
                # Models of a round meet the same queries at the same moments.
                "seeds": np.random.SeedSequence([self.settings.seed, number, done]).generate_state(3).tolist(),
                "folder": folder,
                "trace": step != "search",
            }
            start = time.monotonic()
            said, arrays = one.worker.ask("scenario", settings=settings, extra_s=2 * work_s)
            record.spent_s += time.monotonic() - start
        kept = {name: said[name] for name in LoadTest.model_fields if name in said}
        if load.scenario == "offline":
            kept["queries"] = queries
        if load.scenario == "server" and said["completed_per_s"] < KEEPS_UP * said["scheduled_per_s"]:
            slow = f"{said['completed_per_s']:.4g} of {said['scheduled_per_s']:.4g} queries a second are completed"
            kept |= {"valid": False, "reasons": [*said["reasons"], slow]}
        test = LoadTest.model_validate({"round": number, "step": step or "measure", "rate_per_s": rate, **kept})
        record.tests.append(test)
        if step is None or (step == "confirm" and test.valid):
            record.latencies.append(arrays["latencies_s"].astype(np.float32))
            record.rounds.append(number)
        return test


def affordable(ready: Sequence[_Ready], share_s: float) -> int:
    """How many queries (offline: samples) each model of a group can answer within the share of time of them all."""
    load = ready[0].record.load
    queries = max(FEWEST[load.scenario], min(MOST[load.scenario], int(share_s / _query_s(ready))))
    if load.scenario != "offline":
        return queries
    batch = load.cell.batch
    return batch * max(8 * load.sessions, math.ceil(queries / batch))


def _query_s(ready: Sequence[_Ready]) -> float:
    """What a query (offline: a sample) takes, of all these models together."""
    return {
        "single_stream": sum(one.alone_s for one in ready),
        "multi_stream": sum(SAMPLES_PER_QUERY * one.sample_s for one in ready),
        "server": sum(one.sample_s for one in ready) * TESTS / BUSY,
        "offline": sum(one.sample_s for one in ready),
    }[ready[0].record.load.scenario]


def _group(load: Load) -> tuple[str, int, int, int, str]:
    return load.cell.backend.label, load.cell.threads, load.sessions, load.cell.batch, load.scenario


def _time(seconds: float) -> str:
    return f"{seconds:.3g} s" if seconds >= 1 else f"{seconds * 1e3:.3g} ms"
