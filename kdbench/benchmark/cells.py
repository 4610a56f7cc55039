"""The plan: which artifact runs on which backend, with how many threads, at which batch."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from kdbench.backends import Target, pick_backends
from kdbench.backends.available import why_unavailable
from kdbench.data.generated import batch_size, check_elements, generate
from kdbench.data.pack import EvalPack
from kdbench.data.sizes import Sizes, Sweep, combinations, why_not_sized, written
from kdbench.errors import UserError, nearest
from kdbench.onnxfile import MAX_IR, MAX_OPSET
from kdbench.records import Artifact, Bench, ReferenceCell
from kdbench.store import Arrays, sha256_of_file


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
    backend: Target
    threads: int
    batch: int
    error: str | None = None
    dims: Sizes = field(default_factory=dict, hash=False)
    """Of symbolic dimensions, as they were given."""

    @property
    def slot(self) -> str:
        """What tells its inputs from others of the same model."""
        return f"{self.batch} {written(self.dims)}".strip()


def check_backends(names: Sequence[str], options: Mapping[str, Mapping[str, Any]] | None = None) -> list[Target]:
    """Backends as they are asked for, with the options of each by its name.

    Raises UserError for an unknown backend, precision or option, and where none of them is available.
    """
    targets = pick_backends(names, options)
    reasons = [f"{target.asked}: {why}" for target in targets for why in [why_unavailable(target)] if why]
    if len(reasons) == len(targets):
        raise UserError(f"no backend is available: {'; '.join(reasons)}")
    return targets


def plan(
    subjects: Sequence[Subject], bench: Bench, dims: Sweep | None = None, pack: EvalPack | None = None
) -> list[Cell]:
    """Every artifact × backend × threads × batch × sizes; raises UserError where no cell of them can run."""
    targets = _pinned(check_backends(bench.backends, bench.options), bench.affinity)
    for name, values in (
        ("backends", [target.label for target in targets]),
        ("batches", bench.batches),
        ("threads", bench.threads),
    ):
        if len(set(values)) != len(values):
            raise UserError(f"bench.{name}: {', '.join(map(str, values))}: each one once, please")
    cells = [
        Cell(subject, target, threads, batch, _why_not(subject, target, batch, sizes, pack), sizes)
        for target in targets
        for threads in bench.threads
        for batch in bench.batches
        for sizes in combinations(dims or {})
        for subject in subjects
    ]
    if all(cell.error for cell in cells):
        reasons = dict.fromkeys(cell.error for cell in cells if cell.error)
        raise UserError(f"no cell can be measured: {'; '.join(reasons)}")
    return cells


def reference_cell(cells: Sequence[Cell], bench: Bench) -> ReferenceCell | None:
    """The fixed cell that the plan names as RUNG[@BACKEND], on its first thread count; None where it names none.

    Raises UserError for a rung or backend that the plan doesn't have, where no batch of it can be measured, and for
    scenarios, which are not latencies that could be compared with it.
    """
    if bench.scenarios and (bench.reference or bench.price_per_h):
        field = "reference" if bench.reference else "price_per_h"
        raise UserError(f"bench.{field}: is for latencies, not for scenarios: leave one of them out")
    if bench.reference is None:
        return None
    rungs = {cell.subject.artifact.rung for cell in cells}
    matching = [rung for rung in rungs if f"{bench.reference}@".startswith(f"{rung}@")]
    if not matching:
        rung = bench.reference.partition("@")[0]
        raise UserError(f"bench.reference: no rung '{rung}': {nearest(rung, rungs)}")
    rung = max(matching, key=len)
    backend, threads = bench.reference[len(rung) + 1 :] or "cpu", bench.threads[0]
    found = [cell for cell in cells if backend in (cell.backend.label, cell.backend.asked)]
    if not found:
        known = {cell.backend.label for cell in cells}
        raise UserError(f"bench.reference: backend '{backend}' is not in the plan: {nearest(backend, known)}")
    found = [cell for cell in found if (cell.subject.artifact.rung, cell.threads) == (rung, threads)]
    if all(cell.error for cell in found):
        raise UserError(f"bench.reference: {rung} can't be measured on {backend}: {found[0].error}")
    return ReferenceCell(rung=rung, backend=found[0].backend.label, threads=threads)


def _pinned(targets: Sequence[Target], cpus: Sequence[int]) -> list[Target]:
    """The backends with their workers on these CPUs alone; raises UserError where they may not run there."""
    if not cpus:
        return list(targets)
    if not hasattr(os, "sched_getaffinity"):
        raise UserError("--affinity: this system does not pin processes to CPUs: leave it out")
    allowed = os.sched_getaffinity(0)
    refused = sorted(set(cpus) - allowed)
    if refused:
        raise UserError(
            f"--affinity: CPU {', '.join(map(str, refused))} is not among those that kdbench may run on here: "
            f"{', '.join(map(str, sorted(allowed)))}"
        )
    return [replace(target, cpus=tuple(sorted(set(cpus)))) for target in targets]


def _why_not(subject: Subject, target: Target, batch: int, sizes: Sizes, pack: EvalPack | None) -> str | None:
    artifact, unavailable = subject.artifact, why_unavailable(target)
    if unavailable:
        return f"{target}: {unavailable}"
    if target.row.runs == "weights":
        return _why_no_weights(subject, target) or why_not_sized(artifact, sizes, pack)
    if artifact.ir_version > MAX_IR or artifact.opset > MAX_OPSET:
        return (
            f"{artifact.rung} has IR {artifact.ir_version} and opset {artifact.opset}, "
            f"onnxruntime reads up to {MAX_IR} and {MAX_OPSET}: save it with these"
        )
    fixed = batch_size(artifact.inputs)
    if fixed is not None and fixed != batch:
        return f"{artifact.rung} has a fixed batch of {fixed}: use --batch {fixed}, or export it with a free one"
    return why_not_sized(artifact, sizes, pack)


def _why_no_weights(subject: Subject, target: Target) -> str | None:
    artifact, weights = subject.artifact, target.file(subject.model)
    exported_from = artifact.options.get("weights_sha256")
    if exported_from is None:
        return f"{artifact.rung} has no weights of its own to run on {target}: only rungs that were exported here have"
    if not weights.is_file():
        return f"{artifact.rung}: {weights.name} is not beside its ONNX file, and {target} runs these weights"
    if sha256_of_file(weights) != exported_from:
        return f"{artifact.rung}: {weights.name} is not what its ONNX file was exported from: export it again"
    return None


def inputs(cell: Cell, pack: EvalPack | None) -> Arrays:
    """What the cell is timed on: the pack's first samples, repeated where the batch is larger, or generated ones."""
    artifact = cell.subject.artifact
    if pack is None:
        return generate(artifact.inputs, cell.batch, cell.dims)
    if pack.x_test is not None:
        pack = replace(pack, x_test=pack.x_test[: cell.batch], y_test=None)
    shapes = pack.test_inputs(artifact.inputs, artifact.preprocessing)
    check_elements({name: (cell.batch, *values.shape[1:]) for name, values in shapes.items()})
    return {name: values[np.arange(cell.batch) % len(values)] for name, values in shapes.items()}


def identity(path: Path) -> tuple[int, int, int] | None:
    """Changes when the file is replaced or written to; None where it is gone."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_ino, found.st_size, found.st_mtime_ns
