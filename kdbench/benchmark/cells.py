"""The plan: which artifact runs on which backend, with how many threads, at which batch."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from kdbench.backends import pick_backend
from kdbench.backends.client import why_unavailable
from kdbench.data.generated import batch_size, check_elements, generate
from kdbench.data.pack import EvalPack
from kdbench.errors import UserError
from kdbench.onnxfile import MAX_IR, MAX_OPSET
from kdbench.records import Artifact, Bench
from kdbench.store import Arrays


@dataclass(frozen=True)
class Subject:
    """An artifact and where its file lies."""

    artifact: Artifact
    model: Path
    slower: float = 0.0
    """By which share each of its runs is made longer, for comparisons whose outcome is known."""


@dataclass(frozen=True)
class Cell:
    """One number to be measured, or the reason why it can't be."""

    subject: Subject
    backend: str
    threads: int
    batch: int
    error: str | None = None


def check_backends(names: Sequence[str]) -> None:
    """Raises UserError for an unknown backend, and where none of them is available."""
    for name in names:
        pick_backend(name)
    reasons = [f"{name}: {why_unavailable(name)}" for name in names if why_unavailable(name)]
    if len(reasons) == len(names):
        raise UserError(f"no backend is available: {'; '.join(reasons)}")


def plan(subjects: Sequence[Subject], bench: Bench) -> list[Cell]:
    """Every artifact × backend × threads × batch; raises UserError where no cell of them can run."""
    check_backends(bench.backends)
    for field in ("backends", "batches", "threads"):
        values = getattr(bench, field)
        if len(set(values)) != len(values):
            raise UserError(f"bench.{field}: {', '.join(map(str, values))}: each one once, please")
    cells = [
        Cell(subject, backend, threads, batch, _why_not(subject.artifact, backend, batch))
        for backend in bench.backends
        for threads in bench.threads
        for batch in bench.batches
        for subject in subjects
    ]
    if all(cell.error for cell in cells):
        reasons = dict.fromkeys(cell.error for cell in cells if cell.error)
        raise UserError(f"no cell can be measured: {'; '.join(reasons)}")
    return cells


def _why_not(artifact: Artifact, backend: str, batch: int) -> str | None:
    unavailable = why_unavailable(backend)
    if unavailable:
        return f"{backend}: {unavailable}"
    if artifact.ir_version > MAX_IR or artifact.opset > MAX_OPSET:
        return (
            f"{artifact.rung} has IR {artifact.ir_version} and opset {artifact.opset}, "
            f"onnxruntime reads up to {MAX_IR} and {MAX_OPSET}: save it with these"
        )
    fixed = batch_size(artifact.inputs)
    if fixed is not None and fixed != batch:
        return f"{artifact.rung} has a fixed batch of {fixed}: use --batch {fixed}, or export it with a free one"
    return None


def inputs(cell: Cell, pack: EvalPack | None, dims: Mapping[str, int]) -> Arrays:
    """What the cell is timed on: the pack's first samples, repeated where the batch is larger, or generated ones."""
    artifact = cell.subject.artifact
    if pack is None:
        return generate(artifact.inputs, cell.batch, dims)
    if pack.x_test is not None:
        pack = replace(pack, x_test=pack.x_test[: cell.batch], y_test=None)
    shapes = pack.test_inputs(artifact.inputs, artifact.preprocessing)
    check_elements({name: (cell.batch, *values.shape[1:]) for name, values in shapes.items()})
    return {name: values[np.arange(cell.batch) % len(values)] for name, values in shapes.items()}
