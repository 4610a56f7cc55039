"""Students of one recipe by method and seed, against one trained on the labels alone with the same budget."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from kdbench import __version__
from kdbench.data.pack import load_pack
from kdbench.errors import UserError
from kdbench.evaluation import judge
from kdbench.machine import describe
from kdbench.pipeline.learning import Ground, exported, taught, trained, trained_alone, trained_together
from kdbench.progress import is_main
from kdbench.records import Artifact, Comparison, Distill, RawFile, Recipe, Trial
from kdbench.report.comparison import ALONE, DISTILLED, comparison_table
from kdbench.report.markdown import comparison_to_markdown
from kdbench.report.plots import plots_of, save_plots
from kdbench.report.text import TextTable
from kdbench.store import COMPARISON_FILE, Arrays, RunFolder, prepare_folder, save_results, write_atomic

BATCH = 128
"""Samples that are answered at a time."""


@dataclass(frozen=True)
class Compared:
    """A comparison as a table, and the files that hold it."""

    table: TextTable
    comparison: Path
    report: Path


def compared(ground: Ground, seeds: Sequence[int], baseline: bool) -> Compared | None:
    """Trains what is missing of every method and seed, judges all through the CPU backend, and writes the comparison.

    The teachers are trained once. Of several processes that train together the main one judges and writes; the others
    get None. Raises UserError where a baseline is wanted and the training set has no labels.
    """
    recipe, folder = ground.recipe, ground.folder
    if baseline:
        ground.dataset.train_labels("a student without a teacher (--baseline)")
    methods = {DISTILLED: recipe.distill, **recipe.methods}
    teachers = taught(ground) if any(method.mode == "offline" for method in methods.values()) else []
    found: list[tuple[str, int, Path]] = []
    for name, path in zip(recipe.teacher_names, teachers, strict=False):
        found.append((name, recipe.seed, path))
    if baseline:
        for seed in seeds:
            found.append((ALONE, seed, trained_alone(ground, *_at(folder, recipe, seed, "student-alone"))))
    for name, method in methods.items():
        rung = "student" if name == DISTILLED else f"student-{name}"
        # What learns together writes a teacher too: not over one that others learn from.
        beside = method.mode == "offline" or not teachers
        for seed in seeds:
            found += _students(ground, *_at(folder, recipe, seed, rung, beside), teachers, name, rung, method)
    return _judged(ground, found) if is_main() else None


def _at(folder: RunFolder, recipe: Recipe, seed: int, rung: str, beside: bool = True) -> tuple[RunFolder, Recipe]:
    """Where a student of a seed lies, and its recipe: the ladder's own rungs `beside` the teacher, all others below."""
    own = beside and seed == recipe.seed and rung in ("student", "student-alone")
    place = folder if own else RunFolder(folder.path / f"seed-{seed}")
    if is_main():
        prepare_folder(place.path)
    return place, recipe.model_copy(update={"seed": seed})


def _students(
    ground: Ground,
    folder: RunFolder,
    recipe: Recipe,
    teachers: list[Path],
    name: str,
    rung: str,
    method: Distill,
) -> list[tuple[str, int, Path]]:
    """A student of one method and seed; of mutual learning first its teacher, where there is no other."""
    if method.mode == "offline":
        return [(name, recipe.seed, trained(ground, folder, recipe, teachers, rung, method))]
    student, teacher = trained_together(ground, folder, recipe, rung, method)
    first = not teachers and recipe.seed == ground.recipe.seed and name == DISTILLED
    return ([("teacher", recipe.seed, teacher)] if first else []) + [(name, recipe.seed, student)]


def _judged(ground: Ground, found: list[tuple[str, int, Path]]) -> Compared:
    """Exports and judges all, and writes the comparison with its report."""
    pack, trials, arrays = load_pack(ground.folder.pack), list[Trial](), Arrays()
    if pack.y_test is not None:
        arrays["labels"] = pack.y_test.astype("int32")
    files = [(method, seed, kept, path) for method, seed, weights in found for kept, path in _epochs(weights).items()]
    for number, (method, seed, kept, path) in enumerate(sorted(files, key=lambda file: file[0] != "teacher")):
        ground.progress("judge", number, len(files))
        place = _place(ground.folder, seed, path)
        artifact = exported(ground, place, path.stem, path, _parent(ground, method))
        if artifact is None:
            continue
        model = path if path.suffix == ".onnx" else place.onnx(path.stem)
        record, predicted = judge(artifact, model, pack, BATCH, "cpu", ground.recipe.threads)
        if predicted is None:
            raise UserError(f"{path}: {record.error}")
        raw = str(len(trials))
        arrays[f"predictions.{raw}"] = predicted.astype("int32")
        facts = {"artifact_sha256": artifact.sha256, "parameters": artifact.parameters, "raw": raw}
        trials.append(Trial.model_validate({"method": method, "seed": seed, "kept": kept, **facts}))
    ground.progress("judge", len(files), len(files))
    path = ground.folder.path / COMPARISON_FILE
    comparison = Comparison(
        kdbench=__version__,
        date=datetime.now(UTC).isoformat(timespec="seconds"),
        name=ground.recipe.name,
        machine=describe(),
        recipe=ground.recipe,
        task=ground.dataset.task,
        trials=tuple(trials),
        raw=RawFile(file="", sha256=""),
    )
    comparison = save_results(path, comparison, arrays)
    report = path.with_suffix(".md")
    plots = plots_of([], ground.folder)
    save_plots(plots, path.parent)
    write_atomic(report, comparison_to_markdown(comparison, arrays, [(f"{plot.name}.svg", plot.alt) for plot in plots]))
    return Compared(comparison_table(comparison, arrays), path, report)


def _epochs(weights: Path) -> dict[str, Path]:
    """The weights of a training by what they are of: `last` and, where epochs were judged, `best`."""
    from kdbench.training import weights as weights_files

    if weights.suffix == ".onnx":
        return {"last": weights}
    kept = weights_files.record(weights).kept
    other = {"last": "best", "best": "last"}[kept]
    aside = RunFolder(weights.parent).weights_of_epoch(weights.stem, other)
    return {kept: weights} | ({other: aside} if aside.is_file() else {})


def _place(folder: RunFolder, seed: int, weights: Path) -> RunFolder:
    """Where weights are exported to: beside them, but those that are no rung of the ladder never beside its rungs."""
    aside = weights.stem.endswith(("-last", "-best")) and weights.parent == folder.path
    place = RunFolder(folder.path / f"seed-{seed}") if aside else RunFolder(weights.parent)
    prepare_folder(place.path)
    return place


def _parent(ground: Ground, method: str) -> Artifact | None:
    """The first teacher's file, of which a distilled student is."""
    if method == ALONE or method.startswith("teacher"):
        return None
    artifacts = ground.folder.artifacts() if any(ground.folder.path.glob("*.artifact.json")) else {}
    return next((artifact for rung, artifact in artifacts.items() if rung in ground.recipe.teacher_names), None)
