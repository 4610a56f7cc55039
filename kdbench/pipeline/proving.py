"""What a file made from another one costs and gains: compared, judged and timed beside its parent, in one call."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from kdbench import stats
from kdbench.backends.client import WorkerError
from kdbench.benchmark.cells import Subject, check_backends, plan
from kdbench.benchmark.cells import inputs as inputs_of
from kdbench.benchmark.raw import Raw, common_rounds
from kdbench.benchmark.schedule import Schedule, settings_of
from kdbench.data.generated import batch_size, described, first_samples, generate, sample_count
from kdbench.data.pack import EvalPack, open_pack
from kdbench.errors import UserError
from kdbench.evaluation import Answers, answer, compare, task_of
from kdbench.onnxfile import known_artifact
from kdbench.progress import Progress, silent
from kdbench.proofs.explanations import explain
from kdbench.proofs.precision import samples_of as samples_for
from kdbench.proofs.profile import profile_one
from kdbench.proofs.rewritten import LayerError, Proof, as_metrics, kernels_of, layer_errors, sqnr_db
from kdbench.quantization.samples import Samples, samples_of
from kdbench.records import Artifact, Bench, parse
from kdbench.store import Arrays

BATCH = 32
"""Samples that are answered at a time, where the model's batch is free."""
LAYER_SAMPLES = 32
"""On which the layers' outputs are compared."""
BUDGET_S = 5.0
PROFILE_S = 1.0

PARENT, CHILD = "parent", "child"


def prove(
    parent: str | Path,
    child: str | Path,
    pack: EvalPack | str | Path | None = None,
    *,
    backend: str = "cpu",
    backend_options: Mapping[str, Mapping[str, Any]] | None = None,
    batch: int = 1,
    threads: int = 1,
    budget_s: float = BUDGET_S,
    dims: Mapping[str, int] | None = None,
    inputs: Mapping[str, str] | None = None,
    seed: int = 0,
    progress: Progress = silent,
) -> Proof:
    """Sets an ONNX file beside the one that it was made from, on `backend`.

    Both answer the pack's evaluation samples, or where it has none its calibration samples, or generated inputs; with
    labels each answer is judged. `inputs` say of generated ones what the files don't: see `described`. Layers are
    compared on the CPU, on up to LAYER_SAMPLES of them. Latencies are measured as `kdbench bench` does, for `budget_s`
    seconds or five rounds of processes, whichever is longer; why a child isn't faster is told from its profile. Raises
    UserError where either can't run, or where they don't fit each other.
    """
    parent, child, opened = Path(parent), Path(child), open_pack(pack)
    (target,) = check_backends([backend], backend_options)
    known = [known_artifact(parent), known_artifact(child)]
    before, after = described(known, inputs or {}, opened.name if opened else None)
    fed, others, samples = _samples(before, after, opened, dims or {})
    size = batch_size(after.inputs) or batch
    wanted = {"backends": [backend], "options": backend_options or {}, "threads": [threads], "budget_s": budget_s}
    options = parse(Bench, wanted | {"batches": [size]}, "bench")
    progress("answer", 0, 2)
    try:
        theirs = answer(parent, fed, batch_size(before.inputs) or BATCH, target, threads)
        progress("answer", 1, 2)
        ours = answer(child, others, batch_size(after.inputs) or BATCH, target, threads)
        progress("answer", 2, 2)
        layers, untold = _layers(parent, child, first_samples(before.inputs, fed, LAYER_SAMPLES))
    except WorkerError as error:
        raise UserError(f"{child} against {parent} on {target}: {error}") from None
    found, expected = list(ours.outputs.values()), list(theirs.outputs.values())
    if [output.shape for output in found] != [output.shape for output in expected]:
        raise UserError(f"{child}: its outputs have other shapes than those of {parent}: they can't be compared")
    first, second = found[0].astype(np.float64), expected[0].astype(np.float64)
    proof = Proof(
        parent=before,
        child=after,
        backend=target.label,
        batch=size,
        threads=threads,
        samples=samples,
        parity=compare(found, expected, task_of(before, opened)),
        output_db=sqnr_db(float(np.sum(second**2)), float(np.sum((first - second) ** 2))),
        layers=tuple(layers),
        untold=untold,
        kernels=kernels_of(ours.optimized_operators, after.precision),
    )
    proof = _judged(proof, opened, ours, theirs)
    proof = _timed(proof, parent, child, options, opened, dims or {}, seed, progress)
    if proof.ratio is None or proof.ratio.low > 1:
        return proof
    profiled = profile_one(child, target, proof.batch, threads, opened, dims or {}, PROFILE_S, after)
    return replace(proof, causes=tuple(explain(profiled)))


def layer_metrics(parent: Path, child: Path, samples: Samples) -> dict[str, float]:
    """The SQNR of each layer of a child as metrics of its record, on the first LAYER_SAMPLES, fewer of large models.

    None where onnxruntime's CPU provider can't run either, or where the model takes more samples at once.
    """
    count = min(LAYER_SAMPLES, samples_for(known_artifact(parent)))
    if (batch_size(samples.inputs) or 0) > LAYER_SAMPLES:  # all of whose layers' outputs would be in memory
        return {}
    try:
        return as_metrics(layer_errors(parent, child, samples.first(count).feed())[0])
    except WorkerError:
        return {}


def with_layers(made: Artifact, parent: Path, child: Path, pack: EvalPack) -> Artifact:
    """The record with the SQNR of each layer, on calibration samples."""
    samples = samples_of(pack, made.inputs, made.preprocessing)
    return made.model_copy(update={"metrics": made.metrics | layer_metrics(parent, child, samples)})


def _samples(
    before: Artifact, after: Artifact, pack: EvalPack | None, dims: Mapping[str, int]
) -> tuple[Arrays, Arrays, str]:
    """What the parent and the child are fed, each under its own preprocessing, and what it is."""
    if pack is None:
        fed = generate(before.inputs, batch_size(before.inputs) or BATCH, dims)
        return fed, fed, f"{sample_count(before.inputs, fed)} generated inputs"
    if pack.x_test is not None:
        fed, others = (pack.test_inputs(one.inputs, one.preprocessing) for one in (before, after))
        return fed, others, f"{sample_count(before.inputs, fed)} evaluation samples"
    fed, others = (pack.calibration_inputs(one.inputs, one.preprocessing) for one in (before, after))
    return fed, others, f"{sample_count(before.inputs, fed)} calibration samples"


def _layers(parent: Path, child: Path, fed: Arrays) -> tuple[list[LayerError], int]:
    """None told where onnxruntime's CPU provider has no kernels for what the file computes in."""
    try:
        return layer_errors(parent, child, fed)
    except WorkerError as error:
        if not error.alive:
            raise
        return [], 0


def _judged(proof: Proof, pack: EvalPack | None, ours: Answers, theirs: Answers) -> Proof:
    """With both scores and their paired difference, where there are labels for what was answered."""
    if pack is None or pack.x_test is None or pack.y_test is None:
        return proof
    labels, task = pack.labels(proof.parent.outputs), task_of(proof.parent, pack)
    child, parent = ours.labels(task), theirs.labels(task)
    if child.shape != labels.shape:
        raise UserError(f"{pack.name}: y_test of shape {labels.shape}, but the models answer with {child.shape}")
    if task == "multi_label":
        return replace(
            proof,
            metric="F1",
            scores=(stats.f1(parent, labels)[0], stats.f1(child, labels)[0]),
            difference=stats.f1_difference(child, parent, labels),
        )
    right, theirs_right = child == labels, parent == labels
    return replace(
        proof,
        metric="accuracy",
        scores=(float(theirs_right.mean()), float(right.mean())),
        difference=stats.accuracy_difference(right, theirs_right),
        mcnemar_p=stats.mcnemar(right, theirs_right),
    )


def _timed(
    proof: Proof,
    parent: Path,
    child: Path,
    options: Bench,
    pack: EvalPack | None,
    dims: Mapping[str, int],
    seed: int,
    progress: Progress,
) -> Proof:
    """With both latencies and their ratio, or the reason why there are none."""
    subjects = [
        Subject(artifact.model_copy(update={"rung": name}), path)
        for name, artifact, path in ((PARENT, proof.parent, parent), (CHILD, proof.child, child))
    ]
    cells = plan(subjects, options, {name: (size,) for name, size in dims.items()}, pack)
    feeds = {cell.subject.artifact.rung: inputs_of(cell, pack) for cell in cells if cell.error is None}
    schedule = Schedule(
        cells, settings_of(options, seed), lambda cell: feeds[cell.subject.artifact.rung], baseline=PARENT
    )
    for _ in schedule.rounds(progress):
        pass
    pairs: list[tuple[Raw, Raw]] = schedule.pairs()
    if not pairs:
        return replace(proof, untimed="; ".join(dict.fromkeys(cell.error for cell in cells if cell.error)))
    base, own = pairs[0]
    if base.error or own.error:
        return replace(proof, untimed=base.error or own.error or "")
    medians = common_rounds(base, own)
    return replace(
        proof,
        latencies_s=(float(np.median(medians[0])), float(np.median(medians[1]))),
        ratio=stats.speedup(*medians, stats.STOPPED_LEVEL),
        rounds=len(medians[0]),
    )
