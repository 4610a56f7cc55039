"""The gate: is NEW slower, worse or larger than OLD by more than it may be?"""

import math
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from kdbench import __version__
from kdbench.backends import pick_backends
from kdbench.benchmark.cells import Subject
from kdbench.data.generated import batch_size, described, generate
from kdbench.data.pack import EvalPack, open_filed
from kdbench.data.sizes import Sweep, combinations
from kdbench.errors import UserError
from kdbench.evaluation import parity_on
from kdbench.onnxfile import known_artifact
from kdbench.pipeline.measuring import Enough, measured
from kdbench.progress import Progress, silent
from kdbench.records import Bench, parse, slug
from kdbench.records.gate import Gate
from kdbench.report.gate import deciding, sides
from kdbench.report.gate.checks import Bounds, checks
from kdbench.report.gate.failures import failures
from kdbench.report.gate.sides import NEW, OLD, Side
from kdbench.report.text import percent
from kdbench.store import RunFolder, find_results, load_result

BUDGET_S = 60.0
MAX_SLOWDOWN = 0.05
MAX_DROP = 0.5
"""In points."""
OPTIONS = {
    "backends": "--backend", "options": "--option", "batches": "--batch", "budget_s": "--budget", "dims": "--dim",
    "inputs": "--input",
}  # fmt: skip
"""Of the command, where they have another name."""
BATCH = 32
"""Generated samples that both answer, where their batch is free."""


def compare(
    old: str | Path,
    new: str | Path,
    *,
    max_slowdown: float = MAX_SLOWDOWN,
    max_drop: float | None = None,
    max_growth: float | None = None,
    strict: bool = False,
    backends: Sequence[str] | None = None,
    backend_options: Mapping[str, Mapping[str, Any]] | None = None,
    batches: Sequence[int] | None = None,
    threads: Sequence[int] | None = None,
    budget_s: float | None = None,
    affinity: Sequence[int] | None = None,
    pack: EvalPack | str | Path | None = None,
    dims: Sweep | None = None,
    inputs: Mapping[str, str] | None = None,
    out: str | Path | None = None,
    seed: int = 0,
    progress: Progress = silent,
) -> Gate:
    """Whether `new` is slower than `old` by more than the share `max_slowdown`, loses more than `max_drop` points of
    accuracy or F1, or has a file larger by more than `max_growth`.

    Two ONNX files are measured in turns, round by round until each bound is decided or `budget_s` (60) is spent;
    results lie in `out` (default `compare`), and the other options are those of `bench`. Two result files, or run
    folders, are compared as they are, cell by cell. A drop is judged where there are answers to the same samples, or
    labels; half a point is allowed if nothing is said.

    The gate has not passed where a comparison is proven beyond its bound, or something no longer runs or holds that
    did; if `strict`, neither where one can't be told, or a cell of `old` is missing. Raises UserError for what can't be
    compared: results of two machines, no cell in common, a drop without samples.
    """
    if not 0 <= max_slowdown < math.inf or not 0 <= (max_growth or 0.0) < math.inf:
        raise UserError("--max-slowdown, --max-growth: a share, 0 or more, such as 0.05")
    if max_drop is not None and not 0 <= max_drop <= 100:
        raise UserError("--max-drop: points of accuracy, from 0 to 100, such as 0.5")
    drop = (MAX_DROP if max_drop is None else max_drop) / 100
    bounds = Bounds(max_slowdown, drop, max_growth)
    old, new = Path(old), Path(new)
    models = [_is_model(path) for path in (old, new)]
    if models[0] != models[1]:
        kinds = ["an ONNX file" if model else "a measurement" for model in models]
        raise UserError(f"{old} is {kinds[0]}, {new} {kinds[1]}: compare two of a kind")
    plan = {
        "backends": backends,
        "options": backend_options,
        "batches": batches,
        "threads": threads,
        "budget_s": budget_s,
        "affinity": affinity,
    }
    given = {name: value for name, value in plan.items() if value is not None}
    if models[0]:
        opened = open_filed(pack)
        if max_drop is not None and (opened is None or opened.x_test is None):
            raise UserError("--max-drop: accuracy is judged on samples: give --pack, with 'x_test' in it")
        options = parse(Bench, {"budget_s": BUDGET_S, "precision": _precision(max_slowdown), **given}, "compare")
        place = Path("compare" if out is None else out)
        notes = _measured(old, new, bounds, options, opened, dims or {}, inputs or {}, place, seed, progress)
        one, two = sides.sides_of(*load_result(RunFolder(place).path / "results.json"))
    else:
        rest = {"pack": pack, "dims": dims, "inputs": inputs, "out": out}
        extra = [*given, *(name for name, value in rest.items() if value)]
        if extra:
            named = ", ".join(OPTIONS.get(name, f"--{name}") for name in extra)
            raise UserError(f"{named}: for two ONNX files, which are measured: results are compared as they are")
        one, two = (sides.side(name, *load_result(_one(path))) for name, path in ((OLD, old), (NEW, new)))
        notes = sides.remarks(one, two)
        _in_common(one, two)
    if max_drop is not None:
        _answered(one, two)
    return _gate(one, two, bounds, strict, (str(old), str(new)), notes)


def _is_model(path: Path) -> bool:
    """Raises UserError for what is neither a model nor a measurement."""
    if not path.exists():
        raise UserError(f"{path}: no such file or folder")
    if path.suffix.lower() == ".onnx":
        return True
    if path.is_dir() or path.suffix in (".json", ".zip"):
        return False
    raise UserError(f"{path}: neither an ONNX file (.onnx) nor results (results.json, .results.zip, a run folder)")


def _one(path: Path) -> Path:
    """The result file of a run folder, or the only one of a folder."""
    found = find_results(path)
    if len(found) > 1:
        names = ", ".join(str(file.relative_to(path)) for file in found[:3])
        raise UserError(
            f"{path}: {len(found)} result files ({names}{', …' if len(found) > 3 else ''}): name one of them"
        )
    return found[0]


def _in_common(old: Side, new: Side) -> None:
    """Raises UserError where there is nothing to compare."""
    for side in (old, new):
        if not side.cells:
            raise UserError(f"{side.name.upper()}: has no latencies: scenarios are not compared, nor is an empty file")
    if not old.cells.keys() & new.cells.keys():
        one, two = (sides.place_of(next(iter(side.cells))) for side in (old, new))
        raise UserError(
            f"no cell in common: rung, backend, threads, batch and sizes have to be the same; OLD has {one}, NEW {two}"
        )


def _answered(old: Side, new: Side) -> None:
    """Raises UserError where neither has answers that a drop could be told from; what failed is left to `failures`."""
    found = [side.evaluation(key) for side in (old, new) if side.result.inputs == "data" for key in side.cells]
    evaluations = [evaluation for evaluation in found if evaluation is not None]
    if not any(evaluation.raw is not None or evaluation.error is not None for evaluation in evaluations):
        why = "their outputs are no classes, leave it out" if evaluations else "bench with --pack"
        raise UserError(f"--max-drop: no answers to judge in either: {why}")


def _precision(max_slowdown: float) -> float:
    """To which rounds have to be settled to tell such a change."""
    return min(0.5, max(0.005, max_slowdown))


def _measured(
    old: Path,
    new: Path,
    bounds: Bounds,
    options: Bench,
    pack: EvalPack | None,
    dims: Sweep,
    inputs: Mapping[str, str],
    out: Path,
    seed: int,
    progress: Progress,
) -> tuple[str, ...]:
    """Measures both in turns; what should be known of them."""
    subjects = [
        Subject(known_artifact(path).model_copy(update={"rung": rung}), path) for rung, path in ((OLD, old), (NEW, new))
    ]
    places = len(options.backends) * len(options.threads)
    cells = places * len(options.batches) * len(combinations(dims))
    enough = _until_decided(bounds.slowdown, cells + (places if pack is not None else 0), options.processes)
    with RunFolder(out).lock():
        measured(
            subjects,
            OLD,
            options,
            pack,
            out,
            name=slug(out.resolve().name),
            seed=seed,
            dims=dims,
            given=inputs,
            enough=enough,
            progress=progress,
        )
    said = ["OLD and NEW are the same file"] if subjects[0].artifact.sha256 == subjects[1].artifact.sha256 else []
    return (*said, *([] if pack is not None else [_agreement(subjects, options, dims, inputs)]))


def _until_decided(max_slowdown: float, comparisons: int, first: int) -> Enough:
    """Ends the rounds of a cell at the look that decides it."""
    bound = math.log1p(max_slowdown)

    def enough(old_s: Sequence[float], new_s: Sequence[float]) -> bool:
        rounds = len(new_s)
        if rounds < first or rounds != deciding.next_look(rounds - 1, first):
            return False
        logs = [[math.log(value) for value in values] for values in (new_s, old_s)]
        change = deciding.paired(logs[0], logs[1], deciding.looks_of(rounds, first))
        return deciding.decided(change, bound, comparisons)

    return enough


def _agreement(subjects: Sequence[Subject], options: Bench, dims: Sweep, inputs: Mapping[str, str]) -> str:
    """How alike both answer to generated inputs, which nobody knows the right answers to."""
    artifacts = described([subject.artifact for subject in subjects], inputs)
    batch = next((size for size in map(batch_size, (a.inputs for a in artifacts)) if size is not None), BATCH)
    (target, *_) = pick_backends(options.backends, options.options)
    try:
        fed = generate(artifacts[0].inputs, batch, combinations(dims)[0])
        found = parity_on(subjects[1].model, subjects[0].model, fed, batch, target, artifacts[0].task)
    except UserError as error:
        return f"accuracy was not judged, for want of --pack, and the answers could not be compared: {error}"
    return (
        f"accuracy was not judged, for want of --pack: of {found.samples} generated inputs {percent(found.agreement)} "
        f"are answered alike, the largest difference is {found.largest_difference:.2g} of {found.largest_output:.2g}"
    )


def _gate(old: Side, new: Side, bounds: Bounds, strict: bool, names: tuple[str, str], notes: Sequence[str]) -> Gate:
    gate = Gate(
        kdbench=__version__,
        date=datetime.now(UTC).isoformat(timespec="seconds"),
        old=names[0],
        new=names[1],
        passed=False,
        strict=strict,
        checks=checks(old, new, bounds),
        failures=failures(old, new),
        missing=sides.missing(old, new),
        notes=(*notes, *sides.unknown(old, new)),
        machine=new.result.machine,
    )
    if not gate.checks and not gate.failures and not any(map(old.medians, old.cells)):
        reasons = dict.fromkeys(row.error for row, _ in old.cells.values() if row.error)
        raise UserError(f"nothing could be compared: OLD has no numbers: {'; '.join(reasons)}")
    failed = gate.beyond or gate.failures or (strict and (gate.open or gate.missing or not gate.checks))
    return gate.model_copy(update={"passed": not failed})
