"""Measures the plan: fresh processes, one active cell at a time, short slices, interleaved in random order.

The process is the unit of replication: each round opens a fresh process for each artifact on each backend and thread
count. In a round, the artifacts' workers stand side by side, blocked on their pipes, and take turns in slices, so that
whatever the machine does meets all of them alike and the round's medians can be paired. Rounds go on until each ratio
to the baseline is known well enough, or the budget is spent.
"""

import contextlib
import random
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from itertools import groupby

import numpy as np
from numpy.typing import NDArray

from kdbench import stats
from kdbench.backends.client import Worker, WorkerError
from kdbench.benchmark.cells import Cell, identity
from kdbench.benchmark.energy import packages, read_uj, spent_j
from kdbench.benchmark.raw import Raw, common_rounds
from kdbench.machine import throttled_s
from kdbench.progress import Progress, silent
from kdbench.records import Bench, BenchSettings, Measurement, Process
from kdbench.store import Arrays

SLICE_S = 0.1
SLICE_RUNS = 100
STARTING = 0.06
"""A round ends when what came before its first counted run was no more of it than that, or earlier:"""
SETTLED, STARTING_AT_MOST = 0.1, 0.5
"""when each median's standard error, as its slices tell it, is that share of the precision asked for, since more power
is bought with more processes; but not before the round has measured for as long as it has been starting."""
WARM_UP = 0.2
"""The share of a round's part of the budget after which warming up ends in any case."""
WARM_UP_SLICE = 0.25
"""How long a slice of warming up is, in slices."""


def settings_of(options: Bench, seed: int) -> BenchSettings:
    """How a plan is measured, as a result file keeps it; but for its reference cell, which the cells tell."""
    kept = BenchSettings.model_fields.keys() & Bench.model_fields.keys() - {"reference"}
    fields = {name: getattr(options, name) for name in kept}
    return BenchSettings(seed=seed, slice_s=SLICE_S, slice_runs=SLICE_RUNS, **fields)


Ready = list[tuple[Raw, Worker]]
Slice = tuple[Raw, float, NDArray[np.float32], dict[str, float | None]]
"""Of a cell: when it began, its latencies in seconds, and what the worker said."""


class Schedule:
    """The state of a measurement: `rounds()` measures, `records()` tells what has been measured so far."""

    def __init__(
        self,
        cells: list[Cell],
        settings: BenchSettings,
        feeds: Callable[[Cell], Arrays],
        patience_s: float = 60.0,
        baseline: str | None = None,
        enough: Callable[[Sequence[float], Sequence[float]], bool] | None = None,
    ) -> None:
        """`feeds` gives a cell's inputs; `patience_s` is how long a worker may stay silent before it counts as hung.

        `baseline` is the rung that the others are compared with; without one, or where it is alone, each cell's own
        latency is what has to be known well enough. `enough` tells of the medians of both, paired by round, whether
        their ratio is, if not by the settings' precision.
        """
        self.settings = settings
        self.feeds = feeds
        self.patience_s = patience_s
        self.baseline = baseline
        self.enough = enough
        self.packages = packages()
        """Of the CPU, whose energy can be read."""
        self._raws = [Raw(cell, cell.error) for cell in cells]
        self._random = random.Random(settings.seed)  # noqa: S311 — an order, not a secret
        self._slices = 0
        self._start = time.monotonic()
        self._files = {file: identity(file) for cell in cells for file in [cell.backend.file(cell.subject.model)]}

    def rounds(self, progress: Progress = silent) -> Iterator[int]:
        """Measures round by round, and yields the number of each that is done."""
        self._start = time.monotonic()
        by_place = groupby(self._raws, key=lambda raw: (raw.cell.backend, raw.cell.threads))
        groups = [group for group in (list(group) for _, group in by_place) if _able(group)]
        budget_s, number = self.settings.budget_s, 0
        progress("bench", 0, budget_s)
        while groups:
            left_s = self._left_s()
            for place, group in enumerate(self._random.sample(groups, len(groups))):
                turns = len(groups) * max(1, self.settings.processes - number) - place
                self._measure(number, group, turns, progress)
            yield number
            number += 1
            if number >= self.settings.processes:
                # Less than half a round is not worth starting one.
                worth = self._left_s() > (left_s - self._left_s()) / 2
                groups = [group for group in groups if worth and self._goes_on(group)]
        progress("bench", budget_s, budget_s)

    def records(self) -> tuple[list[Measurement], Arrays]:
        """Measurements of all cells, and their raw arrays, by the number of the cell: see `Raw.arrays`."""
        arrays: Arrays = {}
        for index, raw in enumerate(self._raws):
            arrays |= raw.arrays(str(index))
        return [raw.measurement(str(index)) for index, raw in enumerate(self._raws)], arrays

    def _left_s(self) -> float:
        return max(0.0, self.settings.budget_s - (time.monotonic() - self._start))

    def pairs(self, raws: Sequence[Raw] | None = None) -> list[tuple[Raw, Raw]]:
        """The baseline's cell and each other one of the same backend, threads, batch and sizes, of `raws` or of all."""
        raws = self._raws if raws is None else raws

        def place(raw: Raw) -> tuple[str, int, str]:
            return raw.cell.backend.label, raw.cell.threads, raw.cell.slot

        bases = {place(raw): raw for raw in raws if raw.cell.subject.artifact.rung == self.baseline}
        found = [(bases[place(raw)], raw) for raw in raws if place(raw) in bases]
        return [(base, raw) for base, raw in found if base is not raw]

    def _goes_on(self, group: Sequence[Raw]) -> bool:
        """Whether a ratio to the baseline, or a latency where there is no ratio, is not yet known well enough."""
        precision, able = self.settings.precision, _able(group)
        if precision is None:
            return False
        known = [common_rounds(*pair) for pair in self.pairs(able)]
        known = known or [([1.0] * len(raw.medians), list(raw.medians.values())) for raw in able]
        if self.enough is not None:
            return any(not self.enough(*medians) for medians in known)
        return any(not stats.enough(*medians, precision) for medians in known)

    def _measure(self, number: int, group: Sequence[Raw], turns: int, progress: Progress) -> None:
        """One round of the cells of one backend and thread count: fresh processes that take turns.

        The budget that is left has to do for so many `turns` of any group. A round takes its share of it, or less if
        that lets more rounds in of which starting takes no more than `STARTING`, or if all of its medians are settled.
        """
        precision = self.settings.precision
        start, left_s, throttled = time.monotonic(), self._left_s(), throttled_s()
        with ExitStack() as stack:
            ready = self._opened(number, _able(group), stack)
            ready = self._warmed(ready, time.monotonic() + WARM_UP * left_s / turns)
            begun_s = time.monotonic() - start
            fitting = 0 if precision is None else int(left_s * STARTING / begun_s)
            earliest, end = start + begun_s / STARTING_AT_MOST, start + left_s / max(turns, fitting)
            while ready:
                ready = self._turn(ready, number)
                now = time.monotonic()
                progress("bench", now - self._start, self.settings.budget_s)
                if now >= end or (now >= earliest and _settled(ready, precision)):
                    break
            _weigh(ready)
        after = throttled_s()
        for raw in group:
            raw.end_round(number, None if throttled is None or after is None else after - throttled)

    def _opened(self, number: int, raws: list[Raw], stack: ExitStack) -> Ready:
        """A fresh process for each artifact, with its model loaded and each of its cells run once; the cells that ran.

        The processes start at the same time, and load one after the other when all of them have started. In the first
        round each starts alone, which tells what starting costs.
        """
        by_rung: dict[str, list[Raw]] = {}
        for raw in raws:
            by_rung.setdefault(raw.cell.subject.artifact.rung, []).append(raw)
        started: list[tuple[list[Raw], Worker]] = []
        for rung in self._random.sample(sorted(by_rung), len(by_rung)):
            cell = by_rung[rung][0].cell
            try:
                worker = stack.enter_context(Worker(cell.backend, cell.threads, self.patience_s))
            except WorkerError as error:
                _failed(by_rung[rung], error)
                continue
            started.append((by_rung[rung], worker))
            if number == 0:
                _greet(*started[-1])
        if number:
            for own, worker in started:
                _greet(own, worker)
        return [(raw, worker) for own, worker in started if _able(own) for raw in self._open(number, worker, own)]

    def _open(self, number: int, worker: Worker, raws: list[Raw]) -> list[Raw]:
        """Loads the model and runs each batch at each size once; those that ran.

        Another one goes first in each round: only the first one tells what a first run and its memory cost.
        """
        opened: list[Raw] = []
        model = raws[0].cell.subject.model
        file = worker.backend.file(model)
        if identity(file) != self._files[file]:
            for raw in raws:
                raw.error = f"{file.name} was changed while it was measured: bench again"
            return []
        raws = sorted(raws, key=lambda raw: (raw.cell.batch, *raw.cell.dims.values()))
        turned = number % len(raws)
        try:
            load_s = worker.load(model, first=self.feeds(raws[turned].cell) if worker.backend.row.builds else None)
        except WorkerError as error:
            _failed(raws, error)
            return []
        for place, raw in enumerate(raws[turned:] + raws[:turned]):
            try:
                first_run_s, peak = worker.feed(raw.cell.slot, self.feeds(raw.cell))
            except WorkerError as error:
                raw.error = str(error)
                if not error.alive:
                    return []
                continue
            first = {"first_run_s": first_run_s, "peak_memory_bytes": peak} if place == 0 else {}
            start = {"start_s": worker.start_s} if number == 0 else {}
            raw.processes.append(Process.model_validate({"round": number, "load_s": load_s, **start, **first}))
            opened.append(raw)
        return opened

    def _warmed(self, ready: Ready, end: float) -> Ready:
        """Turns of shorter slices, which don't count, until each cell's runs have stopped getting faster.

        Caches, memory arenas and the clock of the CPU warm up. Ends in any case at `end`, a time of the monotonic
        clock, after a turn of every cell. The cells that can go on.
        """
        runs: dict[int, list[float]] = {id(raw): [] for raw, _ in ready}
        cold = ready
        while cold:
            taken, dead = self._sliced(cold, WARM_UP_SLICE)
            for raw, _, latencies, _ in taken:
                runs[id(raw)] += latencies.tolist()
            ready = _alive(ready, dead)
            if time.monotonic() >= end:
                break
            cold = [(raw, worker) for raw, worker in _alive(cold, dead) if not stats.warm(runs[id(raw)])]
        for raw, _ in ready:
            own = runs[id(raw)]
            said = {"warm_up_runs": len(own), "warm": stats.warm(own)}
            raw.processes[-1] = raw.processes[-1].model_copy(update=said)
        return ready

    def _turn(self, ready: Ready, number: int) -> Ready:
        """One slice of each cell in random order, kept for round `number`; those that can take another one."""
        taken, dead = self._sliced(self._random.sample(ready, len(ready)))
        for raw, start, latencies, facts in taken:
            raw.add(number, self._slices, latencies, {"start_s": start - self._start, **facts})
            self._slices += 1
        return _alive(ready, dead)

    def _sliced(self, ready: Ready, share: float = 1.0) -> tuple[list[Slice], set[Worker]]:
        """A slice of each cell, or the `share` of one, one after the other; and the workers that died of it."""
        taken: list[Slice] = []
        dead: set[Worker] = set()
        for raw, worker in ready:
            if worker in dead:
                continue
            start, seconds, slower = time.monotonic(), share * self.settings.slice_s, raw.cell.subject.slower
            energy_uj = read_uj(self.packages)
            try:
                latencies, facts = worker.slice(raw.cell.slot, seconds, self.settings.slice_runs, slower)
            except WorkerError as error:
                raw.error = str(error)
                if not error.alive:
                    dead.add(worker)
                continue
            # Of a GPU's cell, what the CPU took meanwhile is not the energy of its runs.
            if raw.cell.backend.on_cpu or facts.get("gpu_j") is not None:
                facts = {**facts, "package_j": spent_j(self.packages, energy_uj, read_uj(self.packages))}
            taken.append((raw, start, latencies, facts))
        return taken, dead


def _greet(raws: Sequence[Raw], worker: Worker) -> None:
    """Waits until the process has started."""
    try:
        versions = worker.hello()
    except WorkerError as error:
        _failed(raws, error)
        return
    for raw in raws:
        raw.versions = versions


def _weigh(ready: Ready) -> None:
    """Writes down the memory of processes that are done; one that fails at it has measured all the same."""
    for raw, worker in ready:
        with contextlib.suppress(WorkerError):
            raw.processes[-1] = raw.processes[-1].model_copy(update=worker.memory())


def _settled(ready: Ready, precision: float | None) -> bool:
    return precision is not None and all(raw.uncertainty() <= SETTLED * precision for raw, _ in ready)


def _able(raws: Sequence[Raw]) -> list[Raw]:
    return [raw for raw in raws if raw.error is None]


def _alive(ready: Ready, dead: set[Worker]) -> Ready:
    return [(raw, worker) for raw, worker in ready if raw.error is None and worker not in dead]


def _failed(raws: Sequence[Raw], error: WorkerError) -> None:
    for raw in raws:
        raw.error = str(error)
