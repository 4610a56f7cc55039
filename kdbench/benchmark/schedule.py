"""Measures the plan: fresh processes, one active cell at a time, short slices, interleaved in random order.

The process is the unit of replication: a run of five rounds opens five fresh processes for each artifact on each
backend and thread count. In a round, the artifacts' workers stand side by side, blocked on their pipes, and take turns
in slices, so that whatever the machine does meets all of them alike and the round's medians can be paired.
"""

import random
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from kdbench.backends.client import Worker, WorkerError
from kdbench.benchmark.cells import Cell
from kdbench.progress import Progress, silent
from kdbench.records import BenchSettings, Measurement, Process
from kdbench.store import Arrays

SLICE_S = 0.1
SLICE_RUNS = 100


@dataclass
class _Record:
    """What has been measured of a cell so far."""

    cell: Cell
    error: str | None
    processes: list[Process] = field(default_factory=list)
    latencies: list[NDArray[np.float32]] = field(default_factory=list)
    rounds: list[int] = field(default_factory=list)
    versions: dict[str, str] = field(default_factory=dict)
    slices: list[int] = field(default_factory=list)


class Schedule:
    """The state of a measurement: `rounds()` measures, `records()` tells what has been measured so far."""

    def __init__(
        self, cells: list[Cell], settings: BenchSettings, feeds: Callable[[Cell], Arrays], patience_s: float = 60.0
    ) -> None:
        """`feeds` gives a cell's inputs; `patience_s` is how long a worker may stay silent before it counts as hung."""
        self.settings = settings
        self.feeds = feeds
        self.patience_s = patience_s
        self._records = [_Record(cell, cell.error) for cell in cells]
        self._random = random.Random(settings.seed)  # noqa: S311 — an order, not a secret
        self._slices = 0
        self._files = {file: _identity(file) for cell in cells for file in [cell.backend.file(cell.subject.model)]}

    def rounds(self, progress: Progress = silent) -> Iterator[int]:
        """Measures round by round, and yields the number of each that is done."""
        start = time.monotonic()
        by_place = groupby(self._records, key=lambda record: (record.cell.backend, record.cell.threads))
        groups = [list(group) for _, group in by_place]
        groups = [group for group in groups if any(record.error is None for record in group)]
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

    def records(self) -> tuple[list[Measurement], Arrays]:
        """Measurements of all cells, and their raw arrays: latencies in seconds, and each one's round and slice."""
        measurements, arrays = [], Arrays()
        for index, record in enumerate(self._records):
            cell, raw = record.cell, None
            if record.latencies:
                raw = str(index)
                lengths = [len(latencies) for latencies in record.latencies]
                arrays[f"latencies.{raw}"] = np.concatenate(record.latencies)
                arrays[f"rounds.{raw}"] = np.repeat(np.asarray(record.rounds, dtype=np.uint16), lengths)
                arrays[f"slices.{raw}"] = np.repeat(np.asarray(record.slices, dtype=np.uint32), lengths)
            measurements.append(
                Measurement(
                    rung=cell.subject.artifact.rung,
                    artifact_sha256=cell.subject.artifact.sha256,
                    backend=cell.backend.label,
                    provider_options=cell.backend.options(cell.threads),
                    versions=record.versions,
                    precision=cell.subject.artifact.precision,
                    batch=cell.batch,
                    threads=cell.threads,
                    processes=tuple(record.processes),
                    raw=raw,
                    error=record.error,
                )
            )
        return measurements, arrays

    def _measure(self, number: int, group: list[_Record], share_s: float) -> Iterator[float]:
        """One round of the cells of one backend and thread count: fresh processes that take turns for `share_s`.

        Yields the part of that time that is over, after each turn.
        """
        start = time.monotonic()
        by_rung: dict[str, list[_Record]] = {}
        for record in group:
            if record.error is None:
                by_rung.setdefault(record.cell.subject.artifact.rung, []).append(record)
        with ExitStack() as stack:
            ready: list[tuple[_Record, Worker]] = []
            for rung in self._random.sample(sorted(by_rung), len(by_rung)):
                cell = by_rung[rung][0].cell
                try:
                    worker = stack.enter_context(Worker(cell.backend, cell.threads, self.patience_s))
                except WorkerError as error:
                    for record in by_rung[rung]:
                        record.error = str(error)
                    continue
                ready += [(record, worker) for record in self._open(number, worker, by_rung[rung])]
            # The first turn warms up: caches, memory arenas, the clock of the CPU.
            ready = self._turn(ready, None)
            while ready:
                ready = self._turn(ready, number)
                spent_s = time.monotonic() - start
                if spent_s >= share_s:
                    break
                yield spent_s / share_s

    def _open(self, number: int, worker: Worker, records: list[_Record]) -> list[_Record]:
        """Loads the model and runs each batch once; those that ran.

        Another batch goes first in each round: only the first one tells what a first run and its memory cost.
        """
        opened: list[_Record] = []
        model = records[0].cell.subject.model
        file = worker.backend.file(model)
        if _identity(file) != self._files[file]:
            for record in records:
                record.error = f"{file} was changed while it was measured: bench again"
            return []
        records = sorted(records, key=lambda record: record.cell.batch)
        turned = number % len(records)
        try:
            versions = worker.hello()
            load_s = worker.load(model, first=self.feeds(records[turned].cell) if worker.backend.row.builds else None)
        except WorkerError as error:
            for record in records:
                record.error = str(error)
            return []
        for place, record in enumerate(records[turned:] + records[:turned]):
            try:
                first_run_s, peak = worker.feed(str(record.cell.batch), self.feeds(record.cell))
            except WorkerError as error:
                record.error = str(error)
                if not error.alive:
                    return []
                continue
            record.versions = versions
            first = {"first_run_s": first_run_s, "peak_memory_bytes": peak} if place == 0 else {}
            record.processes.append(Process.model_validate({"round": number, "load_s": load_s, **first}))
            opened.append(record)
        return opened

    def _turn(self, ready: list[tuple[_Record, Worker]], number: int | None) -> list[tuple[_Record, Worker]]:
        """One slice of each cell in random order, kept for round `number`; those that can take another one."""
        dead: set[Worker] = set()
        for record, worker in self._random.sample(ready, len(ready)):
            if worker in dead:
                continue
            try:
                latencies = worker.slice(str(record.cell.batch), self.settings.slice_s, self.settings.slice_runs)
            except WorkerError as error:
                record.error = str(error)
                if not error.alive:
                    dead.add(worker)
                continue
            if number is not None:
                record.latencies.append(latencies)
                record.rounds.append(number)
                record.slices.append(self._slices)
            self._slices += 1
        return [(record, worker) for record, worker in ready if record.error is None and worker not in dead]


def _identity(path: Path) -> tuple[int, int, int] | None:
    """Changes when the file is replaced or written to; None where it is gone."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_ino, found.st_size, found.st_mtime_ns
