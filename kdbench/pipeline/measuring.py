"""The benchmark of any artifacts: evaluated, measured, reported."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

from kdbench import __version__
from kdbench.backends import pick_backend
from kdbench.backends.available import rivals
from kdbench.benchmark.cells import Cell, Subject, inputs, plan, reference_cell
from kdbench.benchmark.loads import Load, library, plan_loads
from kdbench.benchmark.scenarios import Loads
from kdbench.benchmark.schedule import Schedule, settings_of
from kdbench.data.generated import described, hint
from kdbench.data.pack import EvalPack, load_pack
from kdbench.data.sizes import Sweep
from kdbench.errors import UserError
from kdbench.evaluation import told_by
from kdbench.machine import describe
from kdbench.pipeline.judging import judged
from kdbench.pipeline.keeping import same_results
from kdbench.pipeline.learning import Ground
from kdbench.progress import Progress, silent, unsaid
from kdbench.records import Bench, BenchSettings, RawFile, Recipe, ResultFile
from kdbench.records.turns import SpiralRecord
from kdbench.report.files import save_report
from kdbench.report.table import Ladder, ladder
from kdbench.store import (
    PARTIAL_FILE,
    RESULTS_FILE,
    Arrays,
    RunFolder,
    prepare_folder,
    remove_results,
    save_results,
    sha256,
)

Enough = Callable[[Sequence[float], Sequence[float]], bool]
"""Whether two cells' medians, paired by round, tell their ratio well enough."""


@dataclass(frozen=True)
class Report:
    """A measured ladder and the files that show it."""

    ladder: Ladder
    results: Path
    report: Path
    page: Path
    csv: Path
    plots: tuple[Path, ...]
    published: Path | None = None
    returned: Path | None = None
    """Results in one file, to be brought back from the machine that measured a packed run."""


def measured_run(
    ground: Ground, subjects: Sequence[Subject], baseline: str, *, spiral: SpiralRecord | None = None, keep: bool
) -> Report:
    """Those of a recipe's run, as its `bench` has it, on the run's evaluation samples; reported in its folder."""
    folder, recipe = ground.folder, ground.recipe
    return measured(
        subjects,
        baseline,
        recipe.bench,
        load_pack(folder.pack),
        folder.path,
        name=recipe.name,
        recipe=recipe,
        spiral=spiral,
        seed=recipe.seed,
        keep=keep,
        progress=ground.progress,
        say=ground.say,
    )


def measured(
    subjects: Sequence[Subject],
    baseline: str,
    options: Bench,
    pack: EvalPack | None,
    out: Path,
    *,
    name: str,
    seed: int,
    recipe: Recipe | None = None,
    spiral: SpiralRecord | None = None,
    dims: Sweep | None = None,
    given: Mapping[str, str] | None = None,
    keep: bool = False,
    enough: Enough | None = None,
    progress: Progress = silent,
    say: Callable[[str], None] = unsaid,
) -> Report:
    """Evaluates and measures all subjects; results are written after every round, and also when interrupted.

    Scenarios, where there are any among the options, take the place of the latencies. Generated inputs are as `given`
    by name: see `described`. `enough` ends rounds instead of the options' precision: see `Schedule`.
    """
    path = prepare_folder(out) / RESULTS_FILE
    subjects = _described(subjects, given or {}, pack)
    cells = plan(subjects, options, dims, pack)
    for remark in rivals(cell.backend for cell in cells):
        say(remark)
    loads = plan_loads(cells, options) if options.scenarios else []
    settings = settings_of(options, seed).model_copy(update={"reference": reference_cell(cells, options)})
    empty = ResultFile(
        kdbench=__version__,
        date=datetime.now(UTC).isoformat(timespec="seconds"),
        name=name,
        complete=False,
        machine=describe(),
        recipe=recipe and _without_paths(recipe, cells),
        baseline=baseline,
        settings=settings,
        inputs="data" if pack else "generated",
        inputs_sha256=sha256(Path(pack.name).read_bytes()) if pack else None,
        artifacts=tuple(subject.artifact for subject in subjects),
        spiral=spiral,
        raw=RawFile(file="", sha256=""),
    )
    if keep and (earlier := same_results(path, empty, cells, loads)):
        return _read_again(path, *earlier, empty)
    schedule = _loads(loads, settings, pack) if loads else _schedule(cells, settings, pack, baseline, enough)
    evaluations, answers = judged(subjects, cells, [load.cell for load in loads] or cells, pack, progress)
    empty = empty.model_copy(update={"evaluations": tuple(evaluations)})
    whole = _measure(schedule, empty, answers, path, progress)
    with _saying(lambda: f"the measurement is whole: 'kdbench report {path}' shows it"):
        return _report(path, *whole)


def _described(subjects: Sequence[Subject], given: Mapping[str, str], pack: EvalPack | None) -> list[Subject]:
    """The subjects with inputs as they are `given`, and the task of the pack's labels."""
    artifacts = described([subject.artifact for subject in subjects], given, pack.name if pack else None)
    known = [told_by(artifact, pack) for artifact in artifacts]
    return [replace(subject, artifact=artifact) for subject, artifact in zip(subjects, known, strict=True)]


def _measure(
    schedule: Schedule | Loads, empty: ResultFile, answers: Arrays, path: Path, progress: Progress
) -> tuple[ResultFile, Arrays]:
    """Measures round by round; what is known after each lies beside `path`, and in the end there.

    What was measured before an interruption, or before a disk was full, stays.
    """
    partial, rounds = path.with_name(PARTIAL_FILE), 0

    def save(target: Path, complete: bool) -> tuple[ResultFile, Arrays]:
        result, raw = _with_measurements(schedule, empty)
        arrays = raw | answers
        return save_results(target, result.model_copy(update={"complete": complete}), arrays), arrays

    def kept() -> str:
        if not rounds:
            return "nothing of this measurement could be kept: make room, and bench again"
        return f"what was measured before, {rounds} of each cell's rounds, is kept: 'kdbench report {partial}' shows it"

    with _saying(kept):
        try:
            for number in schedule.rounds(progress):
                save(partial, complete=False)
                rounds = number + 1
        except KeyboardInterrupt:
            save(partial, complete=False)
            raise
        whole = save(path, complete=True)
    remove_results(partial)
    return whole


def _with_measurements(schedule: Schedule | Loads, empty: ResultFile) -> tuple[ResultFile, Arrays]:
    """The result with what the schedule knows so far, and its raw arrays."""
    measurements, raw = schedule.records()
    if empty.inputs == "generated":
        fed = {artifact.rung: artifact.inputs for artifact in empty.artifacts}
        measurements = [
            m.model_copy(update={"error": hint(m.error, fed[m.rung])}) if m.error else m for m in measurements
        ]
    if isinstance(schedule, Loads):
        return empty.model_copy(update={"scenarios": tuple(measurements)}), raw
    energy = tuple(package.name for package in schedule.packages)
    return empty.model_copy(update={"measurements": tuple(measurements), "energy": energy}), raw


@contextmanager
def _saying(kept: Callable[[], str]) -> Iterator[None]:
    """Where a file can't be written, as on a full disk, the error also says what of the measurement is `kept`."""
    try:
        yield
    except UserError as error:
        raise UserError(f"{error}; {kept()}") from None


def _schedule(
    cells: list[Cell], settings: BenchSettings, pack: EvalPack | None, baseline: str, enough: Enough | None = None
) -> Schedule:
    feeds = {(cell.subject.artifact.rung, cell.slot): inputs(cell, pack) for cell in cells if not cell.error}
    return Schedule(
        cells,
        settings,
        lambda cell: feeds[cell.subject.artifact.rung, cell.slot],
        baseline=baseline,
        enough=enough,
    )


def _loads(loads: list[Load], settings: BenchSettings, pack: EvalPack | None) -> Loads:
    able = {load.cell.subject.artifact.rung: load.cell for load in loads if not load.error}
    libraries = {rung: library(cell.subject.artifact, pack, cell.dims) for rung, cell in able.items()}
    return Loads(loads, settings, lambda cell: libraries[cell.subject.artifact.rung])


def _without_paths(recipe: Recipe, cells: Sequence[Cell]) -> Recipe:
    """The recipe with the labels of its backends, as paths of interpreters are no part of a result."""
    labels = tuple(dict.fromkeys(cell.backend.label for cell in cells))
    changed = labels if any(cell.backend.python for cell in cells) else recipe.bench.backends
    sections = {
        name: section.model_copy(update={"backend": pick_backend(section.backend).label})
        for name in ("quantize", "prune", "spiral")
        if (section := getattr(recipe, name)) and "@" in (section.backend or "")
    }
    return recipe.model_copy(update={"bench": recipe.bench.model_copy(update={"backends": changed}), **sections})


def _read_again(path: Path, found: ResultFile, arrays: Arrays, wanted: ResultFile) -> Report:
    """The report of what was measured before, by what is `wanted` of its tables."""
    changed = {"settings": wanted.settings, "recipe": wanted.recipe, "spiral": wanted.spiral}
    if changed != {name: getattr(found, name) for name in changed}:
        found = save_results(path, found.model_copy(update=changed), arrays)
    return _report(path, found, arrays)


def _report(path: Path, result: ResultFile, arrays: Arrays) -> Report:
    """Writes report, CSV and plots beside the results."""
    table = ladder(result, arrays)
    report, page, *plots, csv = save_report([table], table.rows, path.parent, RunFolder(path.parent))
    return Report(table, path, report, page, csv, tuple(plots))
