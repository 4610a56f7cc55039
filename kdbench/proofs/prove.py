"""What proves an evaluation: on which CPUs and provider it ran, and how far its outputs are from fp32."""

import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from kdbench.backends import Target, pick_backend
from kdbench.backends.client import Worker, WorkerError
from kdbench.data.generated import batch_size, generate
from kdbench.data.pack import EvalPack
from kdbench.proofs.precision import Reference, answers, error, samples_of
from kdbench.records import Artifact, Evaluation
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
        made = generate(artifact.inputs, fixed or wanted, dims)
        return {name: np.resize(values, (wanted, *values.shape[1:])) for name, values in made.items()}
    if pack.x_test is not None:
        pack = replace(pack, x_test=pack.x_test[:wanted], y_test=None)
    shown = pack.test_inputs(artifact.inputs, artifact.preprocessing)
    if not fixed:
        return shown
    return {name: values[np.arange(wanted) % len(values)] for name, values in shown.items()}


def prove(
    evaluation: Evaluation,
    backend: str | Target,
    artifact: Artifact,
    model: Path,
    feed: Arrays,
    expected: Reference | None,
) -> Evaluation:
    """The evaluation with what proves it; as it is where the backend refuses to tell."""
    found: dict[str, Any] = {}
    batch = batch_size(artifact.inputs) or len(next(iter(feed.values())))
    first = {name: values[:batch] for name, values in feed.items()}
    shares = dict.fromkeys(evaluation.placement, 1.0)
    try:
        with Worker(pick_backend(backend), evaluation.threads) as worker:
            cpus = worker.ask("hello")[0].get("affinity")
            found["affinity"] = None if cpus is None else tuple(cpus)
            worker.load(model, first=first)
            off = error(answers(worker, artifact, feed), expected.outputs) if expected is not None else None
            if expected is not None and off is not None:
                found |= {"compared": len(next(iter(feed.values()))), "bands": dict(expected.bands)}
                if math.isfinite(off.rms):
                    found |= {"rms_error": off.rms, "largest_error": off.largest}
            if len(shares) > 1:
                shares = _shares(worker.profile(model, first, PROFILE_S, PROFILE_RUNS)["kernels"])
    except WorkerError:
        shares = {}
    return evaluation.model_copy(update={**found, "time_share": shares})


def _shares(kernels: list[dict[str, Any]]) -> dict[str, float]:
    """Of the kernels' time, by provider."""
    total = sum(kernel["us"] for kernel in kernels)
    providers = dict.fromkeys(kernel["provider"] for kernel in kernels)
    return {
        provider: sum(kernel["us"] for kernel in kernels if kernel["provider"] == provider) / total
        for provider in providers
        if total
    }
