"""Accuracy, F1, agreement and parity of ONNX files, through a backend: what is timed is what is judged."""

import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kdbench.backends import Target, pick_backend
from kdbench.backends.client import PATIENCE_S, Worker, WorkerError
from kdbench.data.generated import batch_size, generate, in_batches, sample_count, taken
from kdbench.data.pack import EvalPack, open_pack
from kdbench.errors import UserError, check_counts
from kdbench.onnxfile import graph_of, inputs_of, known_artifact, operators_of
from kdbench.progress import Progress, silent
from kdbench.records import Artifact, Evaluation, Task
from kdbench.stats import f1
from kdbench.store import Arrays, whole_name


@dataclass(frozen=True)
class Answers:
    """What a model said: outputs [N, …] by name, and on which provider its nodes ran."""

    outputs: Arrays
    placement: dict[str, dict[str, int]]
    optimized_operators: dict[str, int]

    def labels(self, task: Task = "classification") -> NDArray[np.int64]:
        """What each sample is predicted to be, from the first output.

        Classification: [N], its largest entry, or the output itself if it is a single whole number. Multi-label: 0 and
        1 [N, C], as `labels_above` has it. Raises UserError for an output that can't be read so.
        """
        name, first = next(iter(self.outputs.items()))
        if task == "multi_label":
            if first.ndim != 2:
                raise UserError(f"output '{name}' of shape {first.shape} is not one score a label, [N, labels]")
            return labels_above(first, threshold(first))
        scores = first.reshape(len(first), -1)
        if scores.shape[1] == 1 and not np.issubdtype(first.dtype, np.integer):
            raise UserError(f"output '{name}' is one number a sample, not class scores: accuracy can't be told from it")
        return (scores[:, 0] if scores.shape[1] == 1 else scores.argmax(axis=1)).astype(np.int64)


def threshold(scores: NDArray[Any]) -> float:
    """Above which a score of all those [N, C] of a model means that the label holds.

    0.5 for probabilities, which is what scores are taken for that all lie from 0 to 1 (a little more by the rounding of
    int8); else 0, as for logits.
    """
    return 0.5 if scores.size and scores.min() >= 0 and scores.max() <= 1 + 1e-6 else 0.0


def labels_above(scores: NDArray[Any], bound: float) -> NDArray[np.int64]:
    """Labels [N, C] as 0 and 1."""
    return (scores > bound).astype(np.int64)


@dataclass(frozen=True)
class Accuracy:
    """Right answers among samples."""

    correct: int
    samples: int

    @property
    def accuracy(self) -> float:
        return self.correct / self.samples


@dataclass(frozen=True)
class F1:
    """Of labels of which any number holds for a sample."""

    micro: float
    """2·TP / (2·TP + FP + FN) of all labels taken together."""
    macro: float
    """The mean over labels; one that never occurs and is never predicted counts as 0."""
    samples: int
    labels: int


@dataclass(frozen=True)
class Parity:
    """How far the outputs of two models are apart on the same inputs."""

    samples: int
    differences: tuple[float, ...]
    """The largest of each output."""
    sizes: tuple[float, ...]
    """The largest number of each output of the other model."""
    agreement: float
    """Share of samples with the same answer: the largest entry of the first output, the class that it is itself, or all
    labels where a sample has any number of them."""
    label_agreement: float
    """Share of single labels that are alike; the same as `agreement` where a sample has one."""

    @property
    def largest_difference(self) -> float:
        return max(self.differences)

    @property
    def largest_output(self) -> float:
        return max(self.sizes)


def answer(
    model: Path,
    inputs: Arrays,
    batch: int,
    backend: str | Target = "cpu",
    threads: int = 1,
    progress: Progress = silent,
) -> Answers:
    """Runs all samples (first axis of every input, but of those that all samples share) in batches; the last one is
    filled up and cut again.

    Raises WorkerError where the backend refuses, crashes or hangs, UserError for a model without input or whose
    outputs have no batch axis.
    """
    specs = inputs_of(graph_of(model))
    inputs = taken(specs, inputs)
    if not inputs:
        raise UserError(f"{whole_name(model)}: takes no input, so there is nothing to compare or to evaluate")
    samples, done = sample_count(specs, inputs), 0
    collected: dict[str, list[NDArray[Any]]] = {}
    first = next(in_batches(specs, inputs, batch))
    with _explained(model, backend, threads, first) as (worker, placement, operators):
        for part in in_batches(specs, inputs, batch):
            kept = min(batch, samples - done)
            for name, output in worker.predict(part).items():
                if not output.ndim or len(output) != batch:
                    shape = output.shape
                    raise UserError(f"{whole_name(model)}: output '{name}' of shape {shape} has no batch axis first")
                collected.setdefault(name, []).append(output[:kept])
            done += kept
            progress("answering", done, samples)
    return Answers({name: np.concatenate(parts) for name, parts in collected.items()}, placement, operators)


@contextmanager
def _explained(
    model: Path, backend: str | Target, threads: int, first: Arrays | None = None
) -> Iterator[tuple[Worker, dict[str, dict[str, int]], dict[str, int]]]:
    """A worker with the model, its nodes by provider, and the operators of the graph that runs, where it can tell."""
    target = pick_backend(backend)
    with tempfile.TemporaryDirectory(prefix="kdbench-") as scratch, Worker(target, threads, PATIENCE_S) as worker:
        optimized = Path(scratch, "optimized.onnx") if target.row.saves_optimized else None
        worker.load(model, explain=True, optimized=optimized, first=first)
        yield worker, worker.explain(), operators_of(optimized) if optimized else {}


def evaluate(
    model: str | Path,
    pack: EvalPack | str | Path,
    *,
    batch: int = 32,
    backend: str | Target = "cpu",
    threads: int = 1,
) -> Accuracy | F1:
    """Accuracy of an ONNX file on a pack, through a backend; F1 where samples have any number of labels.

    Raises UserError where the model can't run or doesn't fit, and for a pack without labels.
    """
    check_counts(batch=batch, threads=threads)
    model, opened = Path(model), open_pack(pack)
    assert opened is not None
    artifact = known_artifact(model)
    labels = opened.labels(artifact.outputs)
    record, predicted = judge(artifact, model, opened, batch, backend, threads)
    if predicted is None:
        raise UserError(f"{model} on {backend}: {record.error}")
    if opened.task == "multi_label":
        return F1(*f1(predicted, labels), *labels.shape)
    return Accuracy(int(np.sum(predicted == labels)), len(predicted))


def judge(
    artifact: Artifact,
    model: Path,
    pack: EvalPack | None,
    batch: int,
    backend: str | Target,
    threads: int,
    progress: Progress = silent,
) -> tuple[Evaluation, NDArray[np.int64] | None]:
    """Where the model's nodes run and, with a pack, what all its evaluation samples are predicted to be.

    Predictions are classes [N], or 0 and 1 [N, C]; without labels in the pack they are kept to be compared, if there
    are any in the outputs. An Evaluation with the reason where the backend can't; raises UserError where the pack
    doesn't fit the model.
    """
    batch = batch_size(artifact.inputs) or batch
    record = Evaluation(
        rung=artifact.rung, artifact_sha256=artifact.sha256, backend=str(backend), threads=threads, batch=batch
    )
    try:
        if pack is None:
            with _explained(model, backend, threads) as (_, placement, operators):
                return record.model_copy(update={"placement": placement, "optimized_operators": operators}), None
        labels = None if pack.y_test is None else pack.labels(artifact.outputs)
        inputs = pack.test_inputs(artifact.inputs, artifact.preprocessing)
        answers = answer(model, inputs, batch, backend, threads, progress)
    except WorkerError as error:
        return record.model_copy(update={"error": str(error)}), None
    found = {"placement": answers.placement, "optimized_operators": answers.optimized_operators}
    record = record.model_copy(update=found)
    try:
        predicted = answers.labels(task_of(artifact, pack))
    except UserError:
        if labels is not None:
            raise
        return record, None  # no classes, such as a regression's: there is nothing to compare
    if labels is not None and predicted.shape != labels.shape:
        raise UserError(f"{pack.name}: y_test of shape {labels.shape}, but {model} answers with {predicted.shape}")
    return record, predicted


def task_of(artifact: Artifact, pack: EvalPack | None) -> Task:
    """The labels' task, where there are any; else the model's own, as its record has it."""
    labelled = pack is not None and (pack.y_test is not None or pack.y_calibration is not None)
    return pack.task if pack is not None and labelled else artifact.task


def told_by(artifact: Artifact, pack: EvalPack | None) -> Artifact:
    """The record with the task of the pack's labels, which that of a file from elsewhere may not know."""
    return artifact.model_copy(update={"task": task_of(artifact, pack)})


def parity(
    model: str | Path,
    other: str | Path,
    *,
    pack: EvalPack | str | Path | None = None,
    batch: int = 32,
    backend: str | Target = "cpu",
    dims: Mapping[str, int] | None = None,
    seed: int = 0,
) -> Parity:
    """Compares the outputs of two ONNX files on a pack's evaluation samples, or on one batch of generated inputs.

    Samples of a pack are shown to each under its own preprocessing.
    """
    check_counts(batch=batch)
    model, other, opened = Path(model), Path(other), open_pack(pack)
    artifact, theirs = known_artifact(model), known_artifact(other)
    if [spec.name for spec in artifact.inputs] != [spec.name for spec in theirs.inputs]:
        raise UserError(f"{other}: its inputs have other names than those of {model}: they can't be compared")
    batch = batch_size(artifact.inputs) or batch_size(theirs.inputs) or batch
    task = task_of(artifact, opened)
    if opened is None:
        return parity_on(model, other, generate(artifact.inputs, batch, dims or {}, seed), batch, backend, task)
    inputs, others = (opened.test_inputs(known.inputs, known.preprocessing) for known in (artifact, theirs))
    return parity_on(model, other, inputs, batch, backend, task, others)


def parity_on(
    model: Path,
    other: Path,
    inputs: Arrays,
    batch: int,
    backend: str | Target = "cpu",
    task: Task = "classification",
    others: Arrays | None = None,
) -> Parity:
    """Compares the outputs of two models on the same inputs, pairing outputs by position.

    `others` are these inputs as the other model wants them, where it wants them otherwise.

    Raises UserError where they have other outputs, or where either can't run.
    """
    try:
        # The other one first, which the model was made from: what neither can do is said of it.
        theirs, ours = (
            list(answer(path, fed, batch, backend).outputs.values())
            for path, fed in ((other, others or inputs), (model, inputs))
        )
    except WorkerError as error:
        raise UserError(f"{whole_name(model)} against {whole_name(other)}: {error}") from None
    if [output.shape for output in ours] != [output.shape for output in theirs]:
        raise UserError(
            f"{whole_name(other)}: outputs of shapes {[o.shape for o in theirs]}, {whole_name(model)} has "
            f"{[o.shape for o in ours]}"
        )
    return compare(ours, theirs, task)


def compare(ours: list[NDArray[Any]], theirs: list[NDArray[Any]], task: Task = "classification") -> Parity:
    """The parity of two lists of outputs of equal shapes [N, …]; `theirs` say what the threshold of a label is.

    A single whole number a sample is its class; a single score is that of a label, which holds or not.
    """
    pairs = [
        (np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)) for a, b in zip(ours, theirs, strict=True)
    ]
    samples = len(ours[0])
    scores = [output.reshape(samples, -1) for output in pairs[0]]
    single = scores[0].shape[1] == 1
    if single and all(np.issubdtype(outputs[0].dtype, np.integer) for outputs in (ours, theirs)):
        first, second = (output.astype(np.int64) for output in scores)
    elif single or task == "multi_label":
        first, second = (labels_above(output, threshold(scores[1])) for output in scores)
    else:
        first, second = (output.argmax(axis=1, keepdims=True) for output in scores)
    return Parity(
        samples=samples,
        differences=tuple(_largest_difference(a, b) for a, b in pairs),
        sizes=tuple(float(np.abs(b[np.isfinite(b)]).max(initial=0)) for _, b in pairs),
        agreement=float(np.mean((first == second).all(axis=1))),
        label_agreement=float(np.mean(first == second)),
    )


def _largest_difference(a: NDArray[np.float64], b: NDArray[np.float64]) -> float:
    """0 where both are the same NaN or infinity, infinite where only one of them is."""
    same = (a == b) | (np.isnan(a) & np.isnan(b))
    with np.errstate(invalid="ignore"):
        return float(np.nan_to_num(np.abs(a - b)[~same], nan=np.inf, posinf=np.inf).max(initial=0))
