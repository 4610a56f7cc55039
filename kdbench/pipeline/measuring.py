"""The benchmark of any artifacts: evaluated, measured, reported."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

from kdbench import __version__
from kdbench.backends import pick_backend
from kdbench.backends.available import rivals, survey
from kdbench.benchmark.cells import Cell, Subject, inputs, plan, reference_cell
from kdbench.benchmark.loads import Load, library, plan_loads
from kdbench.benchmark.scenarios import Loads
from kdbench.benchmark.schedule import Schedule, settings_of
from kdbench.data.generated import described, hint
from kdbench.data.pack import EvalPack
from kdbench.data.sizes import Sizes, Sweep
from kdbench.errors import UserError
from kdbench.evaluation import judge
from kdbench.machine import describe
from kdbench.progress import Progress, silent, unsaid
from kdbench.proofs.precision import Reference, reference
from kdbench.proofs.prove import compared_inputs, prove
from kdbench.records import Bench, BenchSettings, Evaluation, RawFile, Recipe, ResultFile
from kdbench.report.files import save_report
from kdbench.report.table import Ladder, ladder
from kdbench.store import (
    PARTIAL_FILE,
    RESULTS_FILE,
    Arrays,
    load_result,
    prepare_folder,
    remove_results,
    save_results,
    sha256,
)


@dataclass(frozen=True)
class Report:
    """A measured ladder and the files that show it."""

    ladder: Ladder
    results: Path
    report: Path
    csv: Path
    plots: tuple[Path, ...]
    published: Path | None = None
    returned: Path | None = None
    """Results in one file, to be brought back from the machine that measured a packed run."""


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
    dims: Sweep | None = None,
    given: Mapping[str, str] | None = None,
    keep: bool = False,
    progress: Progress = silent,
    say: Callable[[str], None] = unsaid,
) -> Report:
    """Evaluates and measures all subjects; results are written after every round, and also when interrupted.

    Scenarios, where there are any among the options, take the place of the latencies. Generated inputs are as `given`
    by name: see `described`.
    """
    path = prepare_folder(out) / RESULTS_FILE
    partial = out / PARTIAL_FILE
    if given:
        if pack is not None:
            raise UserError(f"--input: for generated inputs, and {pack.name} has samples: leave it out")
        artifacts = described([subject.artifact for subject in subjects], given)
        subjects = [replace(subject, artifact=artifact) for subject, artifact in zip(subjects, artifacts, strict=True)]
    cells = plan(subjects, options, dims, pack)
    for remark in rivals(cell.backend for cell in cells):
        say(remark)
    loads = plan_loads(cells, options) if options.scenarios else []
    settings = settings_of(options, seed).model_copy(update={"reference": reference_cell(cells, options)})
    machine = describe()
    result = ResultFile(
        kdbench=__version__,
        date=datetime.now(UTC).isoformat(timespec="seconds"),
        name=name,
        complete=False,
        machine=machine,
        recipe=recipe and _without_paths(recipe, cells),
        baseline=baseline,
        settings=settings,
        inputs="data" if pack else "generated",
        inputs_sha256=sha256(Path(pack.name).read_bytes()) if pack else None,
        artifacts=tuple(subject.artifact for subject in subjects),
        raw=RawFile(file="", sha256=""),
    )
    if keep and (earlier := _same_results(path, result, cells, loads)):
        return _report(path, *earlier)
    schedule = _loads(loads, settings, pack) if loads else _schedule(cells, settings, pack, baseline)
    evaluations, answers = _evaluations(subjects, cells, pack, progress)

    def save(target: Path, complete: bool) -> tuple[ResultFile, Arrays]:
        measurements, raw = schedule.records()
        if pack is None:
            fed = {subject.artifact.rung: subject.artifact.inputs for subject in subjects}
            measurements = [
                m.model_copy(update={"error": hint(m.error, fed[m.rung])}) if m.error else m for m in measurements
            ]
        kind = "scenarios" if loads else "measurements"
        energy = tuple(package.name for package in schedule.packages) if isinstance(schedule, Schedule) else None
        found = {kind: tuple(measurements), "evaluations": tuple(evaluations), "complete": complete, "energy": energy}
        arrays = raw | answers
        return save_results(target, result.model_copy(update=found), arrays), arrays

    rounds = 0

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
    with _saying(lambda: f"the measurement is whole: 'kdbench report {path}' shows it"):
        return _report(path, *whole)


@contextmanager
def _saying(kept: Callable[[], str]) -> Iterator[None]:
    """Where a file can't be written, as on a full disk, the error also says what of the measurement is `kept`."""
    try:
        yield
    except UserError as error:
        raise UserError(f"{error}; {kept()}") from None


def _schedule(cells: list[Cell], settings: BenchSettings, pack: EvalPack | None, baseline: str) -> Schedule:
    feeds = {(cell.subject.artifact.rung, cell.slot): inputs(cell, pack) for cell in cells if not cell.error}
    return Schedule(cells, settings, lambda cell: feeds[cell.subject.artifact.rung, cell.slot], baseline=baseline)


def _loads(loads: list[Load], settings: BenchSettings, pack: EvalPack | None) -> Loads:
    able = {load.cell.subject.artifact.rung: load.cell for load in loads if not load.error}
    libraries = {rung: library(cell.subject.artifact, pack, cell.dims) for rung, cell in able.items()}
    return Loads(loads, settings, lambda cell: libraries[cell.subject.artifact.rung])


def _without_paths(recipe: Recipe, cells: Sequence[Cell]) -> Recipe:
    """The recipe with the labels of its backends, as paths of interpreters are no part of a result."""
    labels = tuple(dict.fromkeys(cell.backend.label for cell in cells))
    changed = labels if any(cell.backend.python for cell in cells) else recipe.bench.backends
    quantize, wanted = recipe.quantize, recipe.quantize.backend
    if wanted is not None and "@" in wanted:
        quantize = quantize.model_copy(update={"backend": pick_backend(wanted).label})
    return recipe.model_copy(
        update={"bench": recipe.bench.model_copy(update={"backends": changed}), "quantize": quantize}
    )


def _evaluations(
    subjects: Sequence[Subject],
    cells: Sequence[Cell],
    pack: EvalPack | None,
    progress: Progress,
) -> tuple[list[Evaluation], Arrays]:
    """Every subject's answers through each backend and thread count of which a cell can run, proven.

    Of several sizes, the proof is of the first that can run.
    """
    batch = max(cell.batch for cell in cells)
    wanted = list(dict.fromkeys((c.subject.artifact.rung, c.backend, c.threads) for c in cells if c.error is None))
    dims: dict[str, Sizes] = {}
    for cell in cells:
        if cell.error is None:
            dims.setdefault(cell.subject.artifact.rung, cell.dims)
    by_rung = {subject.artifact.rung: subject for subject in subjects}
    evaluations: list[Evaluation] = []
    arrays = Arrays()
    expected: dict[str, tuple[Arrays, Reference | None]] = {}
    for number, (rung, backend, threads) in enumerate(wanted):
        progress("evaluate", number, len(wanted))
        subject = by_rung[rung]
        record, predicted = judge(subject.artifact, subject.model, pack, batch, backend, threads)
        if pack is not None and predicted is not None:
            arrays[f"predictions.{number}"] = predicted.astype("int32")
            if pack.y_test is not None:
                arrays["labels"] = pack.y_test.astype("int32")
            record = record.model_copy(update={"raw": str(number)})
        if record.error is None:
            if rung not in expected:
                feed = compared_inputs(subject.artifact, pack, dims[rung])
                expected[rung] = feed, reference(subject.artifact, subject.model, feed)
            record = prove(record, backend, subject.artifact, subject.model, *expected[rung])
        evaluations.append(record)
    progress("evaluate", len(wanted), len(wanted))
    return evaluations, arrays


def _same_results(
    path: Path, wanted: ResultFile, cells: Sequence[Cell], loads: Sequence[Load]
) -> tuple[ResultFile, Arrays] | None:
    """The results in the folder, if they are complete and of the same files, cells, settings and machine."""
    if not path.is_file():
        return None
    try:
        found, arrays = load_result(path)
    except UserError:
        return None
    facts = {"kdbench", "name", "machine", "recipe", "baseline", "settings", "inputs", "inputs_sha256"}
    same = found.complete and found.model_dump(include=facts) == wanted.model_dump(include=facts)
    measured = [
        (
            m.artifact_sha256,
            m.backend,
            m.provider_options,
            m.threads,
            m.batch,
            m.dims,
            m.versions if "@" in m.backend else {},
        )
        for m in found.scenarios or found.measurements
    ]
    planned = [
        (
            c.subject.artifact.sha256,
            str(c.backend),
            c.backend.options(c.threads),
            c.threads,
            c.batch,
            c.dims,
            _elsewhere(c),
        )
        for c in [load.cell for load in loads] or cells
    ]
    under = [(m.scenario, m.sessions, m.bound_s) for m in found.scenarios]
    same = same and under == [(load.scenario, load.sessions, load.bound_s) for load in loads]
    return (found, arrays) if same and measured == planned else None


def _elsewhere(cell: Cell) -> dict[str, str]:
    """Versions in another environment under whose interpreter the cell runs: the machine's own are not these."""
    return survey(cell.backend.python).versions if cell.backend.python and not cell.error else {}


def _report(path: Path, result: ResultFile, arrays: Arrays) -> Report:
    """Writes report, CSV and plot beside the results."""
    table = ladder(result, arrays)
    report, *plots, csv = save_report([table], table.rows, path.parent)
    return Report(table, path, report, csv, tuple(plots))
