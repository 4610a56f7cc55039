"""One recipe, rung by rung, each kept while what it was made from is the same; and the benchmark of any artifacts."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

from kdbench.benchmark.cells import Subject
from kdbench.data.pack import EvalPack, open_filed
from kdbench.data.sizes import Sweep
from kdbench.errors import UserError, check_counts
from kdbench.onnxfile import known_artifact
from kdbench.pipeline.aware import aware
from kdbench.pipeline.comparing import Compared, compared
from kdbench.pipeline.learning import distilled, learned, needs_torch, prepared
from kdbench.pipeline.measuring import Report, measured, measured_run
from kdbench.pipeline.packing import bench_packed, is_packed
from kdbench.pipeline.places import check_places
from kdbench.pipeline.rungs import compressed, ladder_of, of_spiral, run_subjects
from kdbench.progress import Progress, is_main, silent, unsaid
from kdbench.records import Artifact, Bench, Recipe, parse, slug
from kdbench.store import Paths, RunFolder, open_recipe, paths_of
from kdbench.store import publish as publish_results

RUNS = Path("runs")


def run(
    recipe: Recipe | str | Path,
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
    recipe = open_recipe(recipe)
    folder = RunFolder(Path(out or RUNS / recipe.name))
    check_places(recipe)
    with folder.lock():
        ground = prepared(folder, recipe, progress, say)
        weights = learned(ground, alone=True)
        made = distilled(ground, weights, alone=True)
        # Against the first teacher; where none of them knows all classes, against the student alone.
        baseline = next(iter(made))
        teacher = baseline if baseline.startswith("teacher") else None
        compressed(folder, recipe.quantize, teacher, progress, say, recipe.bench.options)
        aware(ground, weights, "student-slim", "student-int8")
        # A spiral in the same folder has rungs of its own, which may be of an earlier student.
        subjects = run_subjects(folder, lambda artifact: not of_spiral(artifact.rung))
        report = measured_run(ground, subjects, baseline, keep=not fresh)
        if publish:
            report = replace(report, published=publish_results(report.results, say=say))
    return report


def distill(
    recipe: Recipe | str | Path,
    out: str | Path | None = None,
    *,
    progress: Progress = silent,
    say: Callable[[str], None] = unsaid,
) -> dict[str, Artifact]:
    """Trains the recipe's teacher and distils its student, both exported to ONNX in `out` (default `runs/<name>`).

    Under torchrun all processes train together; files are written, and artifacts given, by the main one alone.
    """
    with _training(recipe, out) as (recipe, folder):
        heard = (progress, say) if is_main() else (silent, unsaid)
        ground = prepared(folder, recipe, *heard)
        return distilled(ground, learned(ground, alone=False), alone=False)


def compare_methods(
    recipe: Recipe | str | Path,
    out: str | Path | None = None,
    *,
    seeds: int = 1,
    baseline: bool = False,
    progress: Progress = silent,
    say: Callable[[str], None] = unsaid,
) -> Compared | None:
    """Distils the recipe's student by each of its methods with so many seeds, and judges all on the same samples.

    Seeds are counted from the recipe's. With a `baseline` a student is also trained without a teacher, on the same
    budget. What is finished is kept. Under torchrun all but the main process get None.
    """
    check_counts(seeds=seeds)
    with _training(recipe, out) as (recipe, folder):
        ground = prepared(folder, recipe, *((progress, say) if is_main() else (silent, unsaid)))
        return compared(ground, range(recipe.seed, recipe.seed + seeds), baseline)


@contextmanager
def _training(recipe: Recipe | str | Path, out: str | Path | None) -> Iterator[tuple[Recipe, RunFolder]]:
    """The recipe and its run folder, locked by the main process, once all processes have joined."""
    recipe = open_recipe(recipe)
    folder = RunFolder(Path(out or RUNS / recipe.name))
    needs_torch()
    from kdbench.training.processes import joined

    with joined(), folder.lock() if is_main() else nullcontext():
        yield recipe, folder


def bench(
    models: Paths,
    *,
    baseline: str | Path | None = None,
    backends: Sequence[str] | None = None,
    backend_options: Mapping[str, Mapping[str, Any]] | None = None,
    batches: Sequence[int] | None = None,
    threads: Sequence[int] | None = None,
    budget_s: float | None = None,
    precision: float | None = None,
    affinity: Sequence[int] | None = None,
    scenarios: Sequence[str] | None = None,
    bound_s: float | None = None,
    sessions: Sequence[int] | None = None,
    price_per_h: float | None = None,
    currency: str | None = None,
    reference: str | None = None,
    pack: EvalPack | str | Path | None = None,
    dims: Sweep | None = None,
    inputs: Mapping[str, str] | None = None,
    out: str | Path = "bench",
    publish: bool = False,
    seed: int = 0,
    progress: Progress = silent,
    say: Callable[[str], None] = unsaid,
) -> Report:
    """Measures ONNX files, or the rungs of a run folder or a packed run, against a baseline; the report lies in `out`.

    What is not given of the plan is what a packed run says, or else the default of `Bench`: one thread of the CPU
    backend, batch 1.
    The baseline is, if not given, the run's teacher or the first model. With a `pack` (a run folder has its own)
    accuracy is measured too; without one the inputs are generated, with `dims` as sizes of symbolic dimensions: every
    combination, where there are several of them. Rounds of fresh processes go on until each ratio's interval reaches no
    further than the share `precision` to either side. `backend_options` are the options of each backend by its
    name, such as {"openvino": {"precision": "bf16"}}.

    Workers run on the CPUs of `affinity` alone. `inputs` say of generated ones what the files don't: sizes after the
    first, the range of whole numbers, or both, such as {"tokens": "128:0..29999"}.

    `scenarios` (single_stream, multi_stream, server, offline) are measured by MLPerf's loadgen instead of latencies,
    the server's p99 against `bound_s`, with so many `sessions` side by side.

    `price_per_h`, of the machine in `currency`, tells what a million inferences cost. `reference`, as RUNG[@BACKEND],
    is a fixed cell that all others are compared with too: that of the same batch on the first thread count.
    """
    given = {
        "backends": backends,
        "options": backend_options,
        "batches": batches,
        "threads": threads,
        "budget_s": budget_s,
        "precision": precision,
        "affinity": affinity,
        "scenarios": scenarios,
        "bound_s": bound_s,
        "sessions": sessions,
        "price_per_h": price_per_h,
        "currency": currency,
        "reference": reference,
    }
    wanted = {field: value for field, value in given.items() if value is not None}
    paths = paths_of(models)
    if not paths:
        raise UserError("models: name at least one ONNX file or a run folder")
    if len(paths) > 1 and any(map(is_packed, paths)):
        raise UserError("a packed run is measured by itself: leave the other models out")
    if len(paths) == 1 and is_packed(paths[0]):
        if baseline is not None or pack is not None:
            raise UserError("--baseline, --pack: a packed run brings its own: leave them out")
        return bench_packed(paths[0], wanted, dims or {}, inputs or {}, Path(out), seed, publish, progress, say)
    options = parse(Bench, wanted, "bench")
    subjects, against, samples = _subjects(paths, None if baseline is None else Path(baseline), say)
    opened = open_filed(samples if pack is None else pack)
    out = Path(out)
    with RunFolder(out).lock():
        report = measured(
            subjects,
            against,
            options,
            opened,
            out,
            name=slug(out.resolve().name),
            seed=seed,
            dims=dims or {},
            given=inputs,
            progress=progress,
            say=say,
        )
    return replace(report, published=publish_results(report.results, say=say)) if publish else report


def _subjects(
    paths: Sequence[Path], baseline: Path | None, say: Callable[[str], None]
) -> tuple[list[Subject], str, Path | None]:
    """What is measured: ONNX files, or the rungs of a run folder; the baseline's rung; and the run's own samples."""
    folder = RunFolder(paths[0]) if len(paths) == 1 and paths[0].is_dir() else None
    named = [] if folder else [Subject(known_artifact(path), path) for path in paths]
    subjects = ladder_of(folder, say) if folder else _named_apart(named)
    against = subjects[0].artifact.rung
    if baseline is not None:
        found = known_artifact(baseline)
        if all(subject.artifact.sha256 != found.sha256 for subject in subjects):
            subjects = _named_apart([Subject(found, baseline), *subjects])
        against = next(s.artifact.rung for s in subjects if s.artifact.sha256 == found.sha256)
    return subjects, against, folder.pack if folder and folder.pack.is_file() else None


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
