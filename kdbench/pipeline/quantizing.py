"""The fastest int8 file that keeps the accuracy, of any ONNX model: tried, judged, timed and proven on its backend."""

import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from kdbench.backends import Target
from kdbench.backends.client import WorkerError
from kdbench.benchmark.cells import Subject, check_backends
from kdbench.data.generated import batch_size
from kdbench.data.pack import EvalPack
from kdbench.errors import UserError, check_counts
from kdbench.evaluation import told_by
from kdbench.machine import saturates_in_int8
from kdbench.onnxfile import inspect, load_model, portable
from kdbench.pipeline.candidates import Candidate, Ground, attempts, estimate, keeps
from kdbench.pipeline.judged_data import pack_for, parted, test_samples
from kdbench.pipeline.mending import contenders
from kdbench.pipeline.proving import layer_metrics
from kdbench.pipeline.racing import Place, Raced, raced
from kdbench.pipeline.reasons import closest, instead, on_test, why_none, why_slow
from kdbench.pipeline.searches import failed, forget_search, save_search
from kdbench.progress import Progress, silent, unsaid
from kdbench.proofs.layers import FLOAT_KERNELS
from kdbench.quantization.calibration import observe
from kdbench.quantization.judging import Judge, Loss, remarks
from kdbench.quantization.running import Runner, running
from kdbench.quantization.samples import Samples
from kdbench.quantization.sensitivity import names_of
from kdbench.quantization.static import check_options, prepare, tensors_to_calibrate, without_kernels
from kdbench.quantization.targets import candidates, targeted
from kdbench.records import Artifact, Preprocessing, Quantize, as_record
from kdbench.records.budget import Budget, CandidateRecord
from kdbench.steps.passes import copy_of
from kdbench.steps.quantize import float_artifact, warnings_of
from kdbench.steps.slim import derived, slimmed_graph
from kdbench.store import output_file, save_artifact, write_atomic

POINT = 0.01
"""Budgets are given in points and judged as shares."""

POOR = 0.5
"""Below this accuracy on samples of the training set it is asked whether the model sees what it was trained on."""

FP32 = "fp32"

METHODS = ("minmax", "percentile", "mse")
"""Calibrations that are tried where none is named; all of them from one pass over the samples."""


@dataclass(frozen=True)
class Quantized:
    """An int8 file, and what it was chosen from."""

    artifact: Artifact
    file: Path
    budget: Budget
    record: Path
    """The budget's file: every candidate, the trade-off curve, the layers."""
    plots: tuple[Path, ...]


@dataclass(frozen=True)
class Parent:
    """The fp32 model, and what it answers."""

    artifact: Artifact
    file: Path
    pack: EvalPack
    runner: Runner
    """On onnxruntime's CPU provider: what int8 is compared with wherever it runs."""

    def judge(self, samples: Samples) -> Judge:
        try:
            return Judge(samples, self.runner.outputs(self.file, samples), self.artifact.task)
        except WorkerError as error:
            raise UserError(f"{self.file}: {error}") from None


def fastest_int8(
    model: str | Path,
    out: str | Path | None = None,
    source: EvalPack | str | Path | None = None,
    options: Quantize | Mapping[str, Any] | None = None,
    *,
    backend_options: Mapping[str, Mapping[str, Any]] | None = None,
    data_options: Mapping[str, Any] | None = None,
    preprocessing: Preprocessing | None = None,
    samples: int | None = None,
    threads: int = 1,
    batch: int = 1,
    budget_s: float = 30.0,
    seed: int = 0,
    rung: str | None = None,
    progress: Progress = silent,
    say: Callable[[str], None] = unsaid,
) -> Quantized:
    """Writes the fastest int8 file of an fp32 model that loses at most `options.max_drop` points, and what was tried.

    `source` is a pack, or what `kdbench init` knows as data. Its calibration samples, `samples` of them, are parted:
    ranges are found on some, drops of accuracy (of F1; of agreement with fp32 where there are no labels) are judged on
    the others, and the test split only reports. What the options leave unsaid is tried: the targets that are plausible
    for `options.backend`, and METHODS of calibration. Of each kind of int8 within the budget the best is timed, for
    `budget_s` seconds in all; where none is within it, layers are left in float.

    `out` is by default `MODEL-int8.onnx`. Raises UserError for what doesn't fit, and where nothing in int8 keeps the
    accuracy; nothing is written then but what a search over layers has found.
    """
    model, options = Path(model), as_record(Quantize, options or {}, "options")
    out = output_file(out or model.with_name(f"{model.stem}-int8.onnx"), model)
    place = Place(options.backend or "cpu", backend_options or {}, threads, batch, budget_s, seed)
    check_counts(threads=threads, batch=batch)
    target, ways = _target(place), ways_of(options)
    artifact = float_artifact(model)
    if preprocessing is not None:
        artifact = artifact.model_copy(update={"preprocessing": preprocessing})
    pack = pack_for(source, data_options or {}, artifact, samples, seed)
    if pack.preprocessing is None:  # which is otherwise fed as it is
        pack = replace(pack, preprocessing=preprocessing)
    artifact = told_by(artifact, pack)
    calibration, judged = parted(pack, artifact, samples)
    graph, notes = prepare(slimmed_graph(load_model(model), model), model, options.per_channel)
    for way in ways:
        check_options(graph, way, model)
    with (
        running("cpu", threads) as reference,
        running(target, threads) as runner,
        tempfile.TemporaryDirectory(prefix="kdbench-") as scratch,
    ):
        parent = Parent(artifact, model, pack, reference)
        judge = parent.judge(judged)
        if judge.metric == "accuracy" and judge.score < POOR:
            say(
                f"{model.name} is right on {100 * judge.score:.1f} % of its calibration samples only: does it see what "
                "it was trained on? --preprocess says how samples are normalised"
            )
        counted = any(way.calibration != "minmax" for way in ways)
        tensors = tensors_to_calibrate(graph, options)
        observed = observe(graph, calibration.batches, tensors, counted, progress, len(calibration), str(model))
        bound = None if options.max_drop is None else options.max_drop * POINT
        ground = Ground(graph, calibration, judge, runner, observed, bound, progress)
        tried = attempts(ground, ways)
        picked = contenders(ground, tried, options.bias_correction, options.equalization)
        able = [one for one in picked if keeps(ground, one)]
        every = [*picked, *(one for one in tried if one.name not in {other.name for other in picked})]
        searched = Budget(
            model=model.name,
            model_sha256=artifact.sha256,
            backend=target.label,
            threads=threads,
            batch=batch_size(artifact.inputs) or batch,
            metric=judge.metric,
            fp32=judge.score,
            max_drop=bound,
            calibration_samples=len(calibration),
            judged_samples=len(judged),
            evaluations=runner.evaluations,
            candidates=tuple(one.record for one in every),
        )
        if not able:
            _tell_why(every, searched, out, target, say)
            raise UserError(why_none(model, every, judge, options.max_drop))
        subjects = _subjects(able, parent, Path(scratch))
        times = raced(subjects, place, _feed(judge), progress)
        chosen = _fastest(able, times)
        made = next(subject for subject in subjects if subject.artifact.rung == chosen.name)
        time = times[chosen.name]
        if time.error:
            raise UserError(f"{model}: in int8 it can't be timed on {target}: {time.error}")
        tested = _tested(chosen, ground, parent)
        said = [*_of_answers(chosen, tested, made, ground), *_of_speed(time, made, target, place, judge)]
        floating = Path(scratch, "floating.onnx")
        floating.write_bytes(portable(copy_of(chosen.graph)))  # equalised as the int8 file is
        layers = layer_metrics(floating, made.model, judged)
        write_atomic(out, made.model.read_bytes())
    found = {
        "evaluations": runner.evaluations,
        "candidates": tuple(_record(one, times.get(one.name)) for one in every),
        "chosen": chosen.name,
        "test_drop": None if tested is None else estimate(tested.drop),
        "test_samples": 0 if tested is None else tested.parity.samples,
        "remarks": tuple(said),
    }
    budget = searched.model_copy(update=found)
    forget_search(failed(out))
    return _saved(out, rung, artifact, chosen, options, notes, budget, layers)


def ways_of(options: Quantize) -> list[Quantize]:
    """What is tried: every plausible target by every method of calibration, as far as the options leave them open."""
    methods = (options.calibration,) if "calibration" in options.model_fields_set else METHODS
    open_ = [options.model_copy(update={"calibration": method}) for method in methods]
    if options.target is not None:
        return [targeted(way) for way in open_]
    found: dict[str, Quantize] = {}
    ways = [row.over(way) for row in candidates(options.backend or "cpu") for way in open_]
    for way in [way for way in ways if not without_kernels(way)] or ways:
        found.setdefault(way.model_dump_json(exclude={"target"}), way)  # two targets may differ in what is given
    return list(found.values())


def _target(place: Place) -> Target:
    """The backend to quantize for; raises UserError where it is unknown, not here, or runs no ONNX files."""
    (target,) = check_backends([place.backend], place.options)
    if target.row.runs != "onnx":
        raise UserError(f"--for {place.backend}: it runs weights, not ONNX files: name an execution provider")
    return target


def _subjects(able: Sequence[Candidate], parent: Parent, folder: Path) -> list[Subject]:
    """The fp32 model and the candidates' files, which are written to `folder`."""
    subjects = [Subject(parent.artifact.model_copy(update={"rung": FP32}), parent.file)]
    for number, candidate in enumerate(able):
        path = folder / f"{number}.onnx"
        path.write_bytes(portable(candidate.model()))
        lineage = {"preprocessing": parent.artifact.preprocessing, "options": _made_by(candidate)}
        subjects.append(Subject(inspect(path, candidate.name, **lineage), path))
    return subjects


def _made_by(candidate: Candidate) -> dict[str, Any]:
    """The options of its record, those layers among them that are meant to run in float."""
    left = [layer for layer in candidate.layers if layer.name in candidate.left]
    meant = {"left_in_float": names_of(left), "float_layers": sum(layer.operator in FLOAT_KERNELS for layer in left)}
    return candidate.options.model_dump() | meant


def _fastest(able: Sequence[Candidate], times: Mapping[str, Raced]) -> Candidate:
    """The fastest of those whose claims hold, or where none's do, of all; of those that can't be told from it, as their
    interval reaches its speed-up, the least lossy."""
    timed = [one for one in able if times[one.name].speedup]
    sound = [one for one in timed if not times[one.name].broken_claims]
    speed = {one.name: found for one in sound or timed if (found := times[one.name].speedup)}
    best = max((found.value for found in speed.values()), default=0.0)
    level = [one for one in able if one.name in speed and speed[one.name].high >= best]
    return min(level or able, key=lambda one: one.drop)


def _tell_why(
    every: Sequence[Candidate], searched: Budget, out: Path, target: Target, say: Callable[[str], None]
) -> None:
    """Where no candidate keeps the accuracy: keeps what was tried, and says what to try instead."""
    if closest(every) is not None:
        record, drawn = save_search(failed(out), searched)
        say(f"no int8 file is written; what was tried: {', '.join(map(str, (record, *drawn)))}")
    for advice in instead(every, target):
        say(advice)


def _of_answers(chosen: Candidate, tested: Loss | None, made: Subject, ground: Ground) -> list[str]:
    """Remarks on what the chosen one answers, and on what of it is not in int8 as was asked for."""
    assert chosen.loss is not None
    judge, bound = ground.judge, ground.max_drop
    left = (*chosen.options.exclude, *_made_by(chosen)["left_in_float"])
    asked = chosen.options.model_copy(update={"exclude": left})
    return [
        *remarks(chosen.loss, len(judge.samples), bound, judge.metric),
        *on_test(tested, bound),
        *warnings_of(ground.graph, load_model(made.model), asked, ground.observed),
    ]


def _of_speed(time: Raced, made: Subject, target: Target, place: Place, judge: Judge) -> list[str]:
    broken = [f"on {target}, for which it was chosen: {claim}" for claim in time.broken_claims]
    return [*broken, *why_slow(time, made, target, place, _feed(judge))]


def _feed(judge: Judge) -> EvalPack:
    """The judged samples, to be timed on."""
    pack = judge.samples.pack
    return replace(pack, x_test=pack.x_calibration, y_test=None)


def _tested(chosen: Candidate, ground: Ground, parent: Parent) -> Loss | None:
    """What the chosen one loses of the same metric on the test split; None without one, where that has labels and the
    judged samples have none, or the other way round, and where the backend fails at it."""
    samples = test_samples(parent.pack, parent.artifact)
    if samples is None or (samples.labels is None) != (ground.judge.samples.labels is None):
        return None
    try:
        return parent.judge(samples).of(chosen.model(), ground.runner)
    except WorkerError:
        return None


def _record(candidate: Candidate, time: Raced | None) -> CandidateRecord:
    record = candidate.record
    if time is None:
        return record
    return record.model_copy(
        update={
            "speedup": None if time.speedup is None else estimate(time.speedup),
            "int8_kernels": time.int8_kernels,
            "broken_claims": time.broken_claims,
            "doubts": time.doubts,
            "error": record.error or time.error,
        }
    )


def _saved(
    out: Path,
    rung: str | None,
    parent: Artifact,
    chosen: Candidate,
    options: Quantize,
    notes: dict[str, Any],
    budget: Budget,
    layers: dict[str, float],
) -> Quantized:
    """The file's record, the budget's beside it, and its figure."""
    assert chosen.loss is not None
    how = {
        "for": budget.backend,
        "max_drop": options.max_drop,
        "bias_correction": bool(chosen.shifts),
        "equalization": chosen.equalized,
    }
    used = _made_by(chosen) | how | notes
    used.pop("backend")
    if chosen.options.reduce_range is None:
        used["reduce_range"] = saturates_in_int8()
    artifact = derived(out, rung, parent, "quantize", used, chosen.loss.parity, budget.remarks)
    drop = {"judged_drop": chosen.loss.drop.value, "judged_samples": float(budget.judged_samples)}
    artifact = artifact.model_copy(update={"metrics": artifact.metrics | drop | layers})
    record, drawn = save_search(out, budget)
    return Quantized(save_artifact(out.parent, artifact), out, budget, record, drawn)
