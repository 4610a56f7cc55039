"""The student of a recipe with zeros among its weights, and of low rank, each taught again."""

from collections.abc import Mapping
from math import ceil
from pathlib import Path

from kdbench.data.dataset import Dataset
from kdbench.errors import UserError
from kdbench.losses.weighted import terms
from kdbench.progress import is_main
from kdbench.pruning import low_rank as ranks
from kdbench.pruning import masks
from kdbench.pruning.masks import Masks
from kdbench.records import Recipe, Training
from kdbench.steps.factorise import factorise, mark
from kdbench.steps.lesson import Lesson
from kdbench.steps.prune import shorter
from kdbench.steps.train import initial, refine
from kdbench.store import RunFolder, sha256
from kdbench.training import processes, weights


def check(recipe: Recipe, dataset: Dataset) -> None:
    """Raises UserError where a recipe's `sparsify` or `factorise` doesn't fit its student and the trainings, as far as
    that can be told before the student is trained."""
    student = initial(recipe.student, dataset, recipe.seed, "student", recipe.folder)
    section, epochs = recipe.sparsify, recipe.student.training.epochs
    if section:
        masks.maskable(student, section.layers, section.ignore)
        trained = training(recipe, "sparsify").epochs
        if section.end_epoch is not None and section.end_epoch > trained:
            raise UserError(
                f"sparsify.end_epoch: {section.end_epoch}, but it is trained for {trained} epochs: name an earlier "
                "one, or give sparsify.training more of them"
            )
        if section.rewind_epoch is not None and section.rewind_epoch >= epochs:
            raise UserError(
                f"sparsify.rewind_epoch: {section.rewind_epoch}, but the student is trained for {epochs} epochs: "
                "name an earlier one"
            )
        if section.rewind_epoch is not None and recipe.distill.mode == "mutual":
            raise UserError("sparsify.rewind_epoch: no early epoch is kept in mutual learning: leave it out")
    if recipe.factorise:
        ranks.candidates(student, recipe.factorise.layers, recipe.factorise.ignore)
    for name in ("sparsify", "factorise"):
        if getattr(recipe, name):
            terms(recipe.distill.losses, recipe.distill.temperature, recipe.folder, training(recipe, name).epochs)


def training(recipe: Recipe, name: str) -> Training:
    """How the student of the section `name` learns: as that has it, or half as long as the student at a fifth of its
    learning rate; after rewinding as the student did."""
    given: Training | None = getattr(recipe, name).training
    own = recipe.student.training
    if given or (name == "sparsify" and recipe.sparsify and recipe.sparsify.rewind_epoch):
        return given or own
    return shorter(own, ceil(own.epochs / 2))


def sparse(
    run: RunFolder,
    rung: str,
    student: Path,
    teachers: Mapping[str, Path],
    lesson: Lesson,
) -> Path:
    """Trains the student of a weights file on with the zeros of the recipe's `sparsify`; the weights file of `rung`."""
    recipe = lesson.recipe
    section = recipe.sparsify
    assert section is not None
    facts: dict[str, object] = {"sparsify": section.model_dump(exclude={"training"})}
    rewound = None
    if section.rewind_epoch is not None:
        early = run.weights_of_epoch("student", f"epoch-{section.rewind_epoch}")
        found = weights.load_matching(early, weights.record(student).fingerprint)
        if found is None:  # one of an earlier recipe may lie there
            raise UserError(
                f"sparsify.rewind_epoch: {section.rewind_epoch}, but the student's training ended before: "
                "name an earlier one"
            )
        rewound, _ = found
        facts["rewound"] = sha256(early.read_bytes())
    held = Masks(section, recipe.seed, rewound)
    return refine(run, rung, student, teachers, lesson, training=training(recipe, "sparsify"), masks=held, facts=facts)


def low_rank(
    run: RunFolder,
    rung: str,
    student: Path,
    teachers: Mapping[str, Path],
    lesson: Lesson,
) -> Path:
    """Factorises the student of a weights file as the recipe's `factorise` has it, and trains it on; the weights file
    of `rung`. The lesson's `say` is told which layers were left alone, and why."""
    recipe = lesson.recipe
    section = recipe.factorise
    assert section is not None
    start = run.weights(f"{rung}-start")

    def factorised() -> None:
        if is_main() and not weights.load_matching(start, mark(student, section)):
            with run.timed(rung, "factorising"):
                remark = factorise(student, start, section, recipe.folder, "factorise")
            lesson.say(f"{rung}: {remark}")

    processes.agreed(factorised)
    return refine(run, rung, start, teachers, lesson, training=training(recipe, "factorise"))
