"""The rungs that are trained: teachers and students, from their data to ONNX files."""

import os
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

from kdbench.data.dataset import Dataset
from kdbench.data.pack import save_pack
from kdbench.data.remarks import remarks
from kdbench.errors import UserError
from kdbench.onnxfile import known_artifact
from kdbench.pipeline.lighter import lighter
from kdbench.pipeline.rungs import PRUNED, forget, kept
from kdbench.progress import Progress, is_main
from kdbench.records import Artifact, Distill, Recipe
from kdbench.steps.lesson import Lesson
from kdbench.store import RunFolder, fingerprint, sha256

if TYPE_CHECKING:
    from kdbench.teachers import Candidate

TRAINING = "torch onnxscript"
"""Packages that training and export need, as pip wants them."""


@dataclass(frozen=True)
class Ground:
    """What all trained rungs of a recipe start from."""

    folder: RunFolder
    recipe: Recipe
    dataset: Dataset
    data_sha256: str
    """Of the samples to train on, their labels, and the held-out ones."""
    progress: Progress
    say: Callable[[str], None]
    teachers: list["Candidate"] = field(default_factory=list)
    """As a look at them has loaded them, until they are taken to be taught."""

    @property
    def lesson(self) -> Lesson:
        return Lesson(self.recipe, self.dataset, self.data_sha256, self.progress, self.say)


def prepared(folder: RunFolder, recipe: Recipe, progress: Progress, say: Callable[[str], None]) -> Ground:
    """Loads the data, checks that everything fits, and writes the pack.

    `say` is told what a reader of the numbers should know of the data.
    """
    needs_torch()
    from kdbench.training.processes import agreed

    # Once: measured on a busy machine, another look could refuse what is trained already.
    look = is_main() and not any(folder.path.glob("*.safetensors"))
    dataset, teachers = agreed(lambda: loaded(recipe, say, look))
    return replace(grounded(folder, recipe, dataset, progress, say), teachers=teachers)


def loaded(recipe: Recipe, say: Callable[[str], None], look: bool = True) -> tuple[Dataset, list["Candidate"]]:
    """The recipe's data, of which everything in the recipe is known to fit; and its teachers as they were loaded.

    Targets that have to be measured are known to be within reach by a `look` at the narrowest network.
    """
    from kdbench import data
    from kdbench.steps import aware, prune, spiral
    from kdbench.steps import check as fitting
    from kdbench.steps import lighter as beside

    dataset = data.load(recipe.data, recipe.folder)
    for remark in remarks(dataset):
        say(remark)
    prune.check(recipe, dataset, look)
    beside.check(recipe, dataset)
    aware.check(recipe, dataset)
    teachers = fitting.check(recipe, dataset)
    spiral.check(recipe, dataset, teachers, look)
    return dataset, teachers


def grounded(
    folder: RunFolder, recipe: Recipe, dataset: Dataset, progress: Progress, say: Callable[[str], None]
) -> Ground:
    """What a recipe's rungs start from with this data; writes the pack."""
    if is_main():
        save_pack(folder.pack, dataset, recipe.data.calibration_samples, recipe.seed)
    arrays = {name: getattr(dataset, name) for name in ("x_train", "y_train", "x_held_out", "y_held_out")}
    data_sha256 = fingerprint(
        **{name: sha256(array.tobytes()) for name, array in arrays.items() if array is not None},
        preprocessing=dataset.preprocessing and dataset.preprocessing.to_json(),
        classes=dataset.classes,
    )
    return Ground(folder, recipe, dataset, data_sha256, progress, say)


def distilled(ground: Ground, weights: dict[str, Path], alone: bool) -> dict[str, Artifact]:
    """ONNX files of the weights of teachers and student, and of the student alone if asked; see `learned`.

    Of several processes that train together, the main one exports; the others give no artifacts.
    """
    artifacts = made(ground, weights)
    if is_main():
        forget(ground.folder, artifacts, alone)
    return artifacts


def made(ground: Ground, weights: dict[str, Path]) -> dict[str, Artifact]:
    """The same, but for what an earlier recipe has left."""
    artifacts = ladder(ground, weights)
    return artifacts | lighter(ground, weights, artifacts)


def learned(ground: Ground, alone: bool) -> dict[str, Path]:
    """The weights of teachers and student by rung, and of the student alone if asked."""
    folder, recipe = ground.folder, ground.recipe
    weights: dict[str, Path] = {}
    if recipe.distill.mode == "offline":
        teachers = taught(ground)
        weights |= dict(zip(recipe.teacher_names, teachers, strict=True))
    if alone and ground.dataset.y_train is None:
        ground.say("no labels in the training set: without the rung student-alone, which learns from them alone")
    elif alone:
        weights["student-alone"] = trained_alone(ground, folder, recipe)
    if recipe.distill.mode == "offline":
        weights["student"] = trained(ground, folder, recipe, teachers, "student", recipe.distill)
    else:
        weights["student"], weights["teacher"] = trained_together(ground, folder, recipe, "student", recipe.distill)
    if recipe.prune:
        by_name = {name: weights[name] for name in recipe.teacher_names}
        weights[PRUNED] = pruned(ground, weights["student"], by_name)
    return weights


def ladder(ground: Ground, weights: dict[str, Path]) -> dict[str, Artifact]:
    """The ONNX files of weights, teachers first."""
    folder, progress = ground.folder, ground.progress
    artifacts: dict[str, Artifact] = {}
    parents_first = sorted(weights, key=lambda rung: not rung.startswith("teacher"))
    for number, rung in enumerate(parents_first if is_main() else ()):
        progress("export", number, len(weights))
        parent = next((found for name, found in artifacts.items() if name.startswith("teacher")), None)
        parent = {"student": parent, PRUNED: artifacts.get("student")}.get(rung)
        artifact = exported(ground, folder, rung, weights[rung], parent)
        if artifact:
            artifacts[rung] = artifact
    progress("export", len(weights), len(weights))
    return artifacts


def taught(ground: Ground) -> list[Path]:
    """The files of the recipe's teachers, trained where they are to be trained."""
    from kdbench.steps import teach

    recipe = ground.recipe
    paths = []
    for name, section, where in zip(recipe.teacher_names, recipe.teachers, recipe.teacher_fields, strict=True):
        candidate = ground.teachers.pop(0) if ground.teachers else None  # which training changes: for one use
        paths.append(teach.teach(ground.folder, name, section, ground.lesson, where, candidate))
    return paths


def trained_alone(ground: Ground, folder: RunFolder, recipe: Recipe) -> Path:
    """The weights of the student without a teacher, in `folder`, with the seed of `recipe`."""
    from kdbench.steps import train

    return train.train(folder, "student-alone", replace(ground.lesson, recipe=recipe))


def trained(
    ground: Ground, folder: RunFolder, recipe: Recipe, teachers: list[Path], rung: str, method: Distill
) -> Path:
    """The weights of the student distilled by `method`, in `folder`, with the seed of `recipe`."""
    from kdbench.steps import train

    return train.distill(folder, rung, teachers, replace(ground.lesson, recipe=recipe), method, ground.folder)


def trained_together(
    ground: Ground, folder: RunFolder, recipe: Recipe, rung: str, method: Distill
) -> tuple[Path, Path]:
    """The weights of the student and of its teacher, which learnt from each other."""
    from kdbench.steps import train

    rungs = (rung, rung.replace("student", "teacher"))
    student, teacher = train.mutual(folder, rungs, replace(ground.lesson, recipe=recipe), method)
    return student, teacher


def pruned(ground: Ground, student: Path, teachers: dict[str, Path]) -> Path:
    """The weights of the student as `prune` has it: drawn towards fewer channels if asked for, pruned, taught again."""
    from kdbench.steps import prune, train
    from kdbench.training import processes, weights

    folder, recipe, dataset = ground.folder, ground.recipe, ground.dataset
    options = recipe.prune
    assert options is not None
    lesson = ground.lesson
    if options.sparse:
        penalty = processes.agreed(lambda: prune.sparse_penalty(recipe, dataset, student))
        facts = {"sparse": options.sparse.model_dump()}
        training = prune.sparse_training(recipe)
        student = train.refine(
            folder, f"{PRUNED}-sparse", student, teachers, lesson, training=training, penalty=penalty, facts=facts
        )
    if is_main():
        spent = folder.duration_s(f"{PRUNED}-sparse") if options.sparse else None
        folder.note_duration(PRUNED, "sparse learning", spent)
    narrowed = folder.weights(f"{PRUNED}-start")

    def narrow() -> None:
        samples = prune.training_samples(recipe, dataset)
        mark = prune.mark(student, options, recipe.seed, samples, recipe.bench.options)
        if is_main() and not weights.load_matching(narrowed, mark):
            with folder.timed(PRUNED, "pruning"):
                found = prune.prune(
                    student,
                    narrowed,
                    options,
                    samples,
                    recipe.folder,
                    backend_options=recipe.bench.options,
                    seed=recipe.seed,
                    progress=ground.progress,
                )
            for sentence in found.remarks:
                ground.say(f"{PRUNED}: {sentence}")

    processes.agreed(narrow)
    return train.refine(folder, PRUNED, narrowed, teachers, lesson, training=prune.fine_tuning(recipe))


def exported(ground: Ground, folder: RunFolder, rung: str, path: Path, parent: Artifact | None) -> Artifact | None:
    """The ONNX file of weights; a black box is its own. None for a teacher that doesn't know all of the classes."""
    from kdbench.steps.export import export
    from kdbench.training import weights

    if path.suffix == ".onnx":
        artifact = known_artifact(path)
        complete = "known" not in artifact.options
    else:
        class_map = weights.record(path).class_map
        complete = class_map is None or len(class_map.known) == len(ground.dataset.classes)
    if not complete:
        ground.say(f"no rung {rung}: it knows a part of the classes, so that its accuracy means nothing")
        return None
    if path.suffix == ".onnx":
        return artifact
    alone = parent is None and rung.startswith(("teacher", "student-alone"))
    step = "prune" if rung == PRUNED else "train" if alone else "distill"
    lineage = {"parent": parent.rung, "parent_sha256": parent.sha256, "step": step} if parent else {"step": step}

    def make(out: Path) -> Artifact:
        return export(path, out, ground.folder.pack, rung, ground.recipe.folder).model_copy(update=lineage)

    return kept(folder, rung, make, "export", weights=sha256(path.read_bytes()), parent=parent and parent.sha256)


def needs_torch() -> None:
    """Imports torch as training wants it; raises UserError where the training extra is not installed."""
    # Spinning OpenMP threads that share a core can slow small steps down fifty times. Read once, when torch loads.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # without it matrix products on GPUs don't repeat
    for package in TRAINING.split():
        try:
            import_module(package)
        except ImportError:
            raise UserError(f"training needs {package}, which is not installed: pip install {TRAINING}") from None
