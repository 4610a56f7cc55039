"""What proves an evaluation: on which CPUs and provider it ran, and how far its outputs are from fp32."""

import contextlib
import math
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from kdbench.backends import Target, pick_backend
from kdbench.backends.client import Worker, WorkerError
from kdbench.data.generated import batch_size, generate, in_batches, sample_count, shared_inputs
from kdbench.data.pack import EvalPack
from kdbench.data.sizes import Sizes
from kdbench.proofs.precision import Reference, answers, error, samples_of
from kdbench.records import Artifact, Evaluation, Proof
from kdbench.store import Arrays

PROFILE_S = 0.3
PROFILE_RUNS = 50


def compared_inputs(artifact: Artifact, pack: EvalPack | None, dims: Mapping[str, int]) -> Arrays:
    """The samples on which outputs are compared: the pack's first ones, else generated; whole batches of the model's.

    Raises UserError where the pack doesn't fit the model.
    """
    fixed = batch_size(artifact.inputs)
    wanted = samples_of(artifact)
    if fixed:
        wanted = fixed * max(1, wanted // fixed)
    if pack is None:
        made, shared = generate(artifact.inputs, fixed or wanted, dims), shared_inputs(artifact.inputs)
        return {
            name: values if name in shared else np.resize(values, (wanted, *values.shape[1:]))
            for name, values in made.items()
        }
    if pack.x_test is not None:
        pack = replace(pack, x_test=pack.x_test[:wanted], y_test=None)
    shown = pack.test_inputs(artifact.inputs, artifact.preprocessing)
    if not fixed:
        return shown
    return {name: values[np.arange(wanted) % len(values)] for name, values in shown.items()}


@dataclass(frozen=True)
class Sized:
    """What is compared at one size, and what the model should answer to it."""

    dims: Sizes
    feed: Arrays
    expected: Reference | None


def prove(
    evaluation: Evaluation,
    backend: str | Target,
    artifact: Artifact,
    model: Path,
    slots: Sequence[tuple[Sized, int]],
) -> Evaluation:
    """The evaluation with what proves each of the `slots`, sizes and batch, that are timed.

    One has no proof where the backend refuses to tell.
    """
    target, found = pick_backend(backend), dict[str, Any]()
    proofs: dict[int, Proof] = {}
    shares = dict.fromkeys(evaluation.placement, 1.0)
    with (
        contextlib.suppress(WorkerError),
        tempfile.TemporaryDirectory(prefix="kdbench-") as scratch,
        Worker(target, evaluation.threads) as worker,
    ):
        cpus = worker.ask("hello")[0].get("affinity")
        found["affinity"] = None if cpus is None else tuple(cpus)
        worker.load(model, first=_first(artifact, *slots[0]))
        for place, (sized, batch) in enumerate(slots):
            with _unless_dead():
                proofs[place] = _compared(worker, artifact, sized, batch).model_copy(update={"time_share": shares})
        if len(shares) > 1:
            # In a session of its own, after the comparisons.
            for place, proof in proofs.items():
                proofs[place] = proof.model_copy(update={"time_share": {}})
                with _unless_dead():
                    kernels = worker.profile(model, _first(artifact, *slots[place]), PROFILE_S, PROFILE_RUNS)["kernels"]
                    proofs[place] = proof.model_copy(update={"time_share": _shares(kernels)})
        if target.row.saves_optimized:
            optimized = Path(scratch, "optimized.onnx")
            worker.load(model, optimized=optimized)
            with Worker(target, evaluation.threads) as fresh:
                found["optimized_load_s"] = fresh.load(optimized, plain=True)
    return evaluation.model_copy(update={**found, "proofs": tuple(proofs.values())})


@contextlib.contextmanager
def _unless_dead() -> Iterator[None]:
    """What a worker refuses to do is passed over, as long as it lives."""
    try:
        yield
    except WorkerError as error:
        if not error.alive:
            raise


def _first(artifact: Artifact, sized: Sized, batch: int) -> Arrays:
    return next(in_batches(artifact.inputs, sized.feed, batch_size(artifact.inputs) or batch))


def _compared(worker: Worker, artifact: Artifact, sized: Sized, batch: int) -> Proof:
    """The error of the loaded model's outputs, where they can be compared; raises WorkerError."""
    proof = Proof(batch=batch, dims=dict(sized.dims))
    if sized.expected is None:
        return proof
    samples = sample_count(artifact.inputs, sized.feed)
    # In other batches than the reference's, only what it has of each sample can be compared.
    expected = [
        None if theirs is None or (batch != samples and theirs.shape[:1] != (samples,)) else theirs
        for theirs in sized.expected.outputs
    ]
    off = error(answers(worker, artifact, sized.feed, batch), expected)
    if off is None:
        return proof
    told = {"compared": samples, "bands": dict(sized.expected.bands)}
    if math.isfinite(off.rms):
        told |= {"rms_error": off.rms, "largest_error": off.largest}
    return proof.model_copy(update=told)


def _shares(kernels: list[dict[str, Any]]) -> dict[str, float]:
    """Of the kernels' time, by provider."""
    total = sum(kernel["us"] for kernel in kernels)
    providers = dict.fromkeys(kernel["provider"] for kernel in kernels)
    return {
        provider: sum(kernel["us"] for kernel in kernels if kernel["provider"] == provider) / total
        for provider in providers
        if total
    }
