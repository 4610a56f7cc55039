"""The plan of scenarios: which cell is measured under which load, and the samples that its queries are drawn from."""

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from kdbench.backends import Target
from kdbench.backends.client import Worker, WorkerError
from kdbench.benchmark.cells import Cell
from kdbench.data.generated import batch_size, generate, shared_inputs
from kdbench.data.pack import EvalPack
from kdbench.errors import UserError
from kdbench.records import Artifact, Bench, ScenarioName
from kdbench.store import Arrays

SAMPLES = 64
"""That queries are drawn from."""


@dataclass(frozen=True)
class Load:
    """A cell under a scenario, or the reason why it can't be measured."""

    cell: Cell
    scenario: ScenarioName
    sessions: int
    bound_s: float | None
    error: str | None = None


@dataclass(frozen=True)
class Library:
    """The samples that queries are drawn from."""

    arrays: Arrays
    shared: tuple[str, ...]
    """Inputs without a batch axis."""
    fixed: int | None
    """The model's batch, if it is fixed: a smaller one is filled up."""

    def batch(self, size: int) -> Arrays:
        size = self.fixed or size
        return {
            name: values if name in self.shared else values[np.arange(size) % len(values)]
            for name, values in self.arrays.items()
        }


@functools.cache
def why_no_loadgen(backend: Target) -> str | None:
    """Why the interpreter of `backend` has no loadgen, or None where it has."""
    try:
        with Worker(backend, threads=1) as worker:
            worker.ask("loadgen")
    except WorkerError as error:
        return str(error).removeprefix("RuntimeError: ")
    return None


def plan_loads(cells: Sequence[Cell], bench: Bench) -> list[Load]:
    """Every cell × scenario × sessions, but a single stream, one sample at a time, just once.

    Raises UserError where none can run.
    """
    for name in ("scenarios", "sessions"):
        values = getattr(bench, name)
        if len(set(values)) != len(values):
            raise UserError(f"bench.{name}: {', '.join(map(str, values))}: each one once, please")
    if any(cell.dims != cells[0].dims for cell in cells):
        raise UserError("--scenario: measured at one size: give each --dim a single one")
    loads = [
        Load(
            replace(cell, batch=1) if scenario == "single_stream" else cell,
            scenario,
            sessions,
            bench.bound_s if scenario == "server" else None,
            cell.error or why_no_loadgen(cell.backend),
        )
        for scenario in bench.scenarios
        for sessions in ((1,) if scenario == "single_stream" else bench.sessions)
        for cell in cells
        if scenario != "single_stream" or cell.batch == bench.batches[0]
    ]
    if all(load.error for load in loads):
        raise UserError(f"no scenario can be measured: {'; '.join(dict.fromkeys(load.error or '' for load in loads))}")
    return loads


def library(artifact: Artifact, pack: EvalPack | None, dims: Mapping[str, int]) -> Library:
    """The pack's first samples, or generated ones."""
    fixed = batch_size(artifact.inputs)
    if pack is not None:
        found = pack.test_inputs(artifact.inputs, artifact.preprocessing)
        return Library({name: values[:SAMPLES] for name, values in found.items()}, (), fixed)
    return Library(generate(artifact.inputs, SAMPLES, dims), tuple(sorted(shared_inputs(artifact.inputs))), fixed)
