"""One recipe, rung by rung, each kept while what it was made from is the same; and the benchmark of any artifacts."""

import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from importlib import import_module
from pathlib import Path
from typing import Any

from kdbench import __version__
from kdbench.benchmark.cells import Cell, Subject, check_backends, inputs, plan
from kdbench.benchmark.schedule import SLICE_RUNS, SLICE_S, Schedule
from kdbench.data.pack import EvalPack, load_pack, save_pack
from kdbench.data.remarks import remarks
from kdbench.errors import UserError
from kdbench.evaluation import judge
from kdbench.machine import describe, saturates_in_int8, versions
from kdbench.onnxfile import inspect, known_artifact
from kdbench.progress import Progress, silent, unsaid
from kdbench.records import (
    Artifact,
    Bench,
    BenchSettings,
    Evaluation,
    Quantize,
    RawFile,
    Recipe,
    ResultFile,
    parse,
    slug,
)
from kdbench.report.files import save_report
from kdbench.report.table import Ladder, ladder
from kdbench.store import (
    PARTIAL_FILE,
    RESULTS_FILE,
    Arrays,
    RunFolder,
    fingerprint,
    load_recipe,
    load_result,
    prepare_folder,
    remove_results,
    save_artifact,
    save_results,
    sha256,
)
from kdbench.store import publish as publish_results

LADDER = ("teacher", "teacher-int8", "student-alone", "student", "student-slim", "student-int8")
"""The rungs of a recipe, in the order of the table."""

RUNS = Path("runs")

TRAINING = "torch onnxscript"
"""Packages that training and export need, as pip wants them."""


@dataclass(frozen=True)
class Report:
    """A measured ladder and the files that show it."""

    ladder: Ladder
    results: Path
    report: Path
    csv: Path
    plots: tuple[Path, ...]
    published: Path | None = None


def run(
    recipe: Recipe | str,
    out: str | Path | None = None,
    *,
    fresh: bool = False,
    publish: bool = False,
    progress: Progress = silent,
    say: Callable[[str], None] = unsaid,
) -> Report:
    """Walks the whole ladder of a recipe (or of its name or path) into `out` (default `runs/<name>`), and reports it.

    What an earlier run of the same recipe has finished is kept; with `fresh` it is measured again. `say` is called
    with each sentence that a reader of the numbers should know of the data.
    """
    recipe = load_recipe(recipe) if isinstance(recipe, str) else recipe
    folder = RunFolder(Path(out or RUNS / recipe.name))
    check_backends(recipe.bench.backends)
    with folder.lock():
        _distilled(folder, recipe, progress, say, alone=True)
        _compressed(folder, recipe.quantize, progress)
        subjects = run_subjects(folder)
        report = _bench(
            subjects,
            "teacher",
            recipe.bench,
            load_pack(folder.pack),
            folder.path,
            name=recipe.name,
            recipe=recipe,
            seed=recipe.seed,
            keep=not fresh,
            progress=progress,
        )
        if publish:
            report = replace(report, published=publish_results(report.results))
    return report


def distill(
    recipe: Recipe | str,
    out: str | Path | None = None,
    *,
    progress: Progress = silent,
    say: Callable[[str], None] = unsaid,
) -> dict[str, Artifact]:
    """Trains the recipe's teacher and distils its student, both exported to ONNX in `out` (default `runs/<name>`)."""
    recipe = load_recipe(recipe) if isinstance(recipe, str) else recipe
    folder = RunFolder(Path(out or RUNS / recipe.name))
    with folder.lock():
        return _distilled(folder, recipe, progress, say, alone=False)


def bench(
    models: Sequence[str | Path],
    *,
    baseline: str | Path | None = None,
    backends: Sequence[str] = ("cpu",),
    batches: Sequence[int] = (1,),
    threads: Sequence[int] = (1,),
    budget_s: float = 30.0,
    pack: str | Path | None = None,
    dims: Mapping[str, int] | None = None,
    out: str | Path = "bench",
    publish: bool = False,
    seed: int = 0,
    progress: Progress = silent,
) -> Report:
    """Measures ONNX files, or the rungs of a run folder, against a baseline; the report lies in `out`.

    The baseline is, if not given, the run's teacher or the first model. With a `pack` (a run folder has its own)
    accuracy is measured too; without one the inputs are generated, with `dims` as sizes of symbolic dimensions.
    """
    wanted = {"backends": backends, "batches": batches, "threads": threads, "budget_s": budget_s}
    options = parse(Bench, wanted, "bench")
    paths = [Path(model) for model in models]
    folder = RunFolder(paths[0]) if len(paths) == 1 and paths[0].is_dir() else None
    if folder:
        subjects = run_subjects(folder)
        pack = pack or (folder.pack if folder.pack.is_file() else None)
    else:
        subjects = _named_apart([Subject(known_artifact(path), path) for path in paths])
    if baseline is not None:
        found = known_artifact(Path(baseline))
        if all(subject.artifact.sha256 != found.sha256 for subject in subjects):
            subjects = _named_apart([Subject(found, Path(baseline)), *subjects])
        reference = next(s.artifact.rung for s in subjects if s.artifact.sha256 == found.sha256)
    else:
        rungs = [subject.artifact.rung for subject in subjects]
        reference = "teacher" if folder and "teacher" in rungs else rungs[0]
    out = Path(out)
    with RunFolder(out).lock():
        report = _bench(
            subjects,
            reference,
            options,
            load_pack(Path(pack)) if pack else None,
            out,
            name=slug(out.resolve().name),
            seed=seed,
            dims=dims or {},
            progress=progress,
        )
    return replace(report, published=publish_results(report.results)) if publish else report


def run_subjects(folder: RunFolder) -> list[Subject]:
    """The rungs of a run folder in the order of the ladder, then others by name."""
    artifacts = folder.artifacts()
    order = {rung: index for index, rung in enumerate(LADDER)}
    rungs = sorted(artifacts, key=lambda rung: (order.get(rung, len(order)), rung))
    subjects = [Subject(artifacts[rung], folder.path / artifacts[rung].file) for rung in rungs]
    for subject in subjects:
        parent = artifacts.get(subject.artifact.parent or "")
        if inspect(subject.model).sha256 != subject.artifact.sha256:
            raise UserError(f"{subject.model}: not the file that its record describes (sha256 differs): make it again")
        if parent and parent.sha256 != subject.artifact.parent_sha256:
            raise UserError(
                f"{subject.model}: made from another {parent.rung} than the one beside it: "
                "'kdbench run' with the same recipe makes it again"
            )
    return subjects


# --- the rungs --------------------------------------------------------------------------------------------------------


def _distilled(
    folder: RunFolder, recipe: Recipe, progress: Progress, say: Callable[[str], None], alone: bool
) -> dict[str, Artifact]:
    """Weights and ONNX files of teacher and student, and of the student alone if asked."""
    needs_torch()
    from kdbench import data
    from kdbench.steps import train
    from kdbench.steps.export import export

    dataset = data.load(recipe.data)
    for remark in remarks(dataset):
        say(remark)
    train.check(recipe, dataset)
    save_pack(folder.pack, dataset, recipe.data.calibration_samples, recipe.seed)
    data_sha256 = fingerprint(
        x=sha256(dataset.x_train.tobytes()),
        y=sha256(b"" if dataset.y_train is None else dataset.y_train.tobytes()),
        preprocessing=dataset.preprocessing and dataset.preprocessing.to_json(),
        classes=dataset.classes,
    )
    teacher = train.train(folder, "teacher", recipe.teacher, recipe, dataset, data_sha256, progress)
    weights = {"teacher": teacher}
    if alone:
        weights["student-alone"] = train.train(
            folder, "student-alone", recipe.student, recipe, dataset, data_sha256, progress
        )
    weights["student"] = train.distill(folder, "student", teacher, recipe, dataset, data_sha256, progress)
    artifacts: dict[str, Artifact] = {}
    for number, (rung, path) in enumerate(weights.items()):
        progress("export", number, len(weights))
        parent = artifacts["teacher"] if rung == "student" else None

        def make(out: Path, path: Path = path, rung: str = rung, parent: Artifact | None = parent) -> Artifact:
            made = export(path, out, folder.pack, rung)
            lineage = (
                {"parent": parent.rung, "parent_sha256": parent.sha256, "step": "distill"}
                if parent
                else {"step": "train"}
            )
            return made.model_copy(update=lineage)

        artifacts[rung] = _kept(
            folder, rung, make, "export", weights=sha256(path.read_bytes()), parent=parent and parent.sha256
        )
    progress("export", len(weights), len(weights))
    return artifacts


def _compressed(folder: RunFolder, options: Quantize, progress: Progress) -> None:
    """The slimmed and the int8 rungs."""
    from kdbench.steps.quantize import quantize
    from kdbench.steps.slim import slim

    pack = load_pack(folder.pack)
    facts: dict[str, Any] = {
        "pack": sha256(folder.pack.read_bytes()),
        "options": options.model_dump(),
        "saturates": saturates_in_int8(),
    }

    def quantized(parent: str, rung: str) -> Callable[[Path], Artifact]:
        return lambda out: quantize(folder.onnx(parent), out, pack, options, rung)

    steps: list[tuple[str, str, str, Callable[[Path], Artifact]]] = [
        ("teacher", "teacher-int8", "quantize", quantized("teacher", "teacher-int8")),
        ("student", "student-slim", "slim", lambda out: slim(folder.onnx("student"), out, "student-slim", pack)),
        ("student-slim", "student-int8", "quantize", quantized("student-slim", "student-int8")),
    ]
    for number, (parent, rung, step, make) in enumerate(steps):
        progress("slim, quantize", number, len(steps))
        _kept(folder, rung, make, step, parent=sha256(folder.onnx(parent).read_bytes()), **facts)
    progress("slim, quantize", len(steps), len(steps))


def _kept(folder: RunFolder, rung: str, make: Callable[[Path], Artifact], step: str, **facts: Any) -> Artifact:
    """The rung's artifact: the one in the folder if it was made from the same `facts`, else made now."""
    mark = fingerprint(step=step, versions=versions() | {"kdbench": __version__}, **facts)
    path = folder.onnx(rung)
    if path.is_file():
        with suppress(UserError):  # a damaged file or record is made again
            artifact = known_artifact(path)
            if artifact.fingerprint == mark:
                return artifact
    return save_artifact(folder.path, make(path).model_copy(update={"fingerprint": mark}))


def needs_torch() -> None:
    """Imports torch as training wants it; raises UserError where the training extra is not installed."""
    # Spinning OpenMP threads that share a core can slow small steps down fifty times. Read once, when torch loads.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    for package in TRAINING.split():
        try:
            import_module(package)
        except ImportError:
            raise UserError(f"training needs {package}, which is not installed: pip install {TRAINING}") from None


# --- the benchmark ----------------------------------------------------------------------------------------------------


def _bench(
    subjects: Sequence[Subject],
    baseline: str,
    options: Bench,
    pack: EvalPack | None,
    out: Path,
    *,
    name: str,
    seed: int,
    recipe: Recipe | None = None,
    dims: Mapping[str, int] | None = None,
    keep: bool = False,
    progress: Progress = silent,
) -> Report:
    """Evaluates and measures all subjects; results are written after every round, and also when interrupted."""
    path = prepare_folder(out) / RESULTS_FILE
    partial = out / PARTIAL_FILE
    cells = plan(subjects, options)
    settings = BenchSettings(
        seed=seed, processes=options.processes, budget_s=options.budget_s, slice_s=SLICE_S, slice_runs=SLICE_RUNS
    )
    machine = describe()
    result = ResultFile(
        kdbench=__version__,
        date=datetime.now(UTC).isoformat(timespec="seconds"),
        name=name,
        complete=False,
        machine=machine,
        recipe=recipe,
        baseline=baseline,
        settings=settings,
        inputs="data" if pack else "generated",
        inputs_sha256=sha256(Path(pack.name).read_bytes()) if pack else None,
        artifacts=tuple(subject.artifact for subject in subjects),
        raw=RawFile(file="", sha256=""),
    )
    if keep and (earlier := _same_results(path, result, cells)):
        return _report(path, *earlier)
    feeds = {
        (cell.subject.artifact.rung, cell.batch): inputs(cell, pack, dims or {}) for cell in cells if not cell.error
    }
    evaluations, answers = _evaluations(subjects, cells, pack, progress)
    schedule = Schedule(cells, settings, lambda cell: feeds[cell.subject.artifact.rung, cell.batch])

    def save(target: Path, complete: bool) -> tuple[ResultFile, Arrays]:
        measurements, raw = schedule.records()
        found = {"measurements": tuple(measurements), "evaluations": tuple(evaluations), "complete": complete}
        arrays = raw | answers
        return save_results(target, result.model_copy(update=found), arrays), arrays

    try:
        for _ in schedule.rounds(progress):
            save(partial, complete=False)
    except KeyboardInterrupt:
        save(partial, complete=False)
        raise
    report = _report(path, *save(path, complete=True))
    remove_results(partial)
    return report


def _evaluations(
    subjects: Sequence[Subject], cells: Sequence[Cell], pack: EvalPack | None, progress: Progress
) -> tuple[list[Evaluation], Arrays]:
    """Every subject's answers through each backend and thread count of which a cell can run."""
    batch = max(cell.batch for cell in cells)
    wanted = list(dict.fromkeys((c.subject.artifact.rung, c.backend, c.threads) for c in cells if c.error is None))
    by_rung = {subject.artifact.rung: subject for subject in subjects}
    evaluations: list[Evaluation] = []
    arrays = Arrays()
    for number, (rung, backend, threads) in enumerate(wanted):
        progress("evaluate", number, len(wanted))
        subject = by_rung[rung]
        record, predicted = judge(subject.artifact, subject.model, pack, batch, backend, threads)
        if pack is not None and predicted is not None:
            arrays[f"predictions.{number}"] = predicted.astype("int32")
            arrays["labels"] = pack.labels(subject.artifact.outputs).astype("int32")
            record = record.model_copy(update={"raw": str(number)})
        evaluations.append(record)
    progress("evaluate", len(wanted), len(wanted))
    return evaluations, arrays


def _same_results(path: Path, wanted: ResultFile, cells: Sequence[Cell]) -> tuple[ResultFile, Arrays] | None:
    """The results in the folder, if they are complete and of the same files, cells, settings and machine."""
    if not path.is_file():
        return None
    try:
        found, arrays = load_result(path)
    except UserError:
        return None
    facts = {"kdbench", "name", "machine", "recipe", "baseline", "settings", "inputs", "inputs_sha256"}
    same = found.complete and found.model_dump(include=facts) == wanted.model_dump(include=facts)
    measured = [(m.artifact_sha256, m.backend, m.threads, m.batch) for m in found.measurements]
    planned = [(c.subject.artifact.sha256, c.backend, c.threads, c.batch) for c in cells]
    return (found, arrays) if same and measured == planned else None


def _report(path: Path, result: ResultFile, arrays: Arrays) -> Report:
    """Writes report, CSV and plot beside the results."""
    table = ladder(result, arrays)
    report, *plots, csv = save_report([table], table.rows, path.parent)
    return Report(table, path, report, csv, tuple(plots))


def _named_apart(subjects: list[Subject]) -> list[Subject]:
    """Subjects whose rungs have names of their own: equal ones are led by their folder's name, then numbered."""
    taken: dict[str, int] = {}
    named = []
    rungs = [subject.artifact.rung for subject in subjects]
    for subject in subjects:
        rung = subject.artifact.rung
        if rungs.count(rung) > 1:
            rung = f"{subject.model.resolve().parent.name}-{rung}"
        taken[rung] = taken.get(rung, 0) + 1
        rung = rung if taken[rung] == 1 else f"{rung}-{taken[rung]}"
        named.append(Subject(subject.artifact.model_copy(update={"rung": rung}), subject.model))
    return named
