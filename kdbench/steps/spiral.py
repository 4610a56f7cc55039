"""A turn of the spiral: the model of a weights file pruned a little, and taught again."""

import re
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from math import ceil
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from kdbench.data.dataset import Dataset
from kdbench.data.preprocess import apply
from kdbench.errors import UserError
from kdbench.losses.weighted import terms
from kdbench.progress import unsaid
from kdbench.pruning import structured
from kdbench.pruning.sparse import check_drawn
from kdbench.pruning.targets import Cost, cost
from kdbench.records import Preprocessing, PruneSection, Pruning, Recipe, SpiralSection, Training
from kdbench.steps import prune
from kdbench.steps.export import content_of
from kdbench.steps.latency import beside_the_first
from kdbench.steps.lesson import Lesson
from kdbench.steps.train import initial, refine
from kdbench.store import RunFolder, fingerprint
from kdbench.teachers import Candidate
from kdbench.teachers.black_box import BlackBox
from kdbench.training import weights

SHARE = 4
"""A turn has the student's epochs, divided by this, where nothing is said."""


def check(recipe: Recipe, dataset: Dataset, teachers: Sequence[Candidate], look: bool = True) -> None:
    """Raises UserError where the recipe's spiral can't be walked, as far as that can be told before any training.

    `teachers` are those of the recipe, as they were loaded. Whether a latency or size is reached is told by a `look` at
    the narrowest network.
    """
    section = recipe.spiral
    if section is None:
        return
    if recipe.distill.mode == "mutual":
        raise UserError("spiral: its turns learn from teachers that are trained already: set distill.mode to 'offline'")
    if dataset.x_held_out is None:
        raise UserError("spiral: turns are judged on held-out samples, and there are none: set data.held_out_samples")
    if dataset.y_held_out is None:
        raise UserError("spiral: turns are judged by labels, and the training set has none: give a source that has")
    model, preprocessing = _first(recipe, dataset, teachers)
    x = torch.from_numpy(apply(dataset.x_train[: structured.PROOF], preprocessing))
    what, goal = section.target or ("macs", 1 - section.step)
    by = "latency" if what in ("latency", "size") else direction(section)  # what is measured, not counted
    try:
        with tempfile.TemporaryDirectory(prefix="kdbench-") as scratch:
            measure = _measure(recipe, Path(scratch), x)
            structured.check(model, _options(section, by, goal), x, measure if look or what == "size" else None)
    except UserError as error:
        said = re.sub(rf"^prune\.{by}\b", f"spiral.{what}", str(error))
        raise UserError(re.sub(r"^prune\b", "spiral", said)) from None
    if section.sparse:
        check_drawn(model, section.sparse, x, "spiral.sparse")
    for training in (turn_training(recipe), section.final, sparse_training(recipe)):
        if training:
            terms(recipe.distill.losses, recipe.distill.temperature, recipe.folder, training.epochs)


def _first(recipe: Recipe, dataset: Dataset, teachers: Sequence[Candidate]) -> tuple[nn.Module, Preprocessing | None]:
    """The model that the spiral will start from, of its structure, and the preprocessing of its inputs."""
    assert recipe.spiral is not None
    if recipe.spiral.start == "student":
        student = initial(recipe.student, dataset, recipe.seed, "student", recipe.folder)
        return student, dataset.preprocessing
    if len(teachers) > 1:
        raise UserError("spiral.start: there are several teachers: start from the student")
    (teacher,) = teachers
    if isinstance(teacher.model, BlackBox):
        raise UserError("spiral.start: the teacher is a black box, which can't be pruned: start from the student")
    if not teacher.class_map.whole(len(dataset.classes)):
        raise UserError("spiral.start: the teacher has classes of its own: start from the student")
    return teacher.model, teacher.preprocessing


def _measure(recipe: Recipe, scratch: Path, x: Tensor) -> structured.Measure | None:
    """Of a network before any training, where the target is no sum over its layers."""
    section = recipe.spiral
    assert section is not None
    if section.latency is not None:
        return beside_the_first(scratch, x, section.backend, recipe.bench.options, recipe.seed)
    return (lambda model: float(len(content_of(model, x.numpy())))) if section.size is not None else None


def direction(section: SpiralSection) -> Literal["macs", "parameters"]:
    """What a step takes a share of."""
    return "parameters" if section.target and section.target[0] in ("parameters", "size") else "macs"


def turn_training(recipe: Recipe) -> Training:
    """How the model of a turn learns again: as `spiral.training` has it, or a quarter as long as the student at a fifth
    of the learning rate."""
    assert recipe.spiral is not None
    own = recipe.student.training
    return recipe.spiral.training or prune.shorter(own, ceil(own.epochs / SHARE))


def sparse_training(recipe: Recipe) -> Training | None:
    """How a model learns before it is pruned, at the learning rate of what follows; None where it doesn't."""
    assert recipe.spiral is not None
    sparse = recipe.spiral.sparse
    return prune.shorter(turn_training(recipe), sparse.epochs, slower=1) if sparse else None


def seen_by(dataset: Dataset, source: Path) -> Dataset:
    """The data under the preprocessing of a weights file."""
    return replace(dataset, preprocessing=weights.record(source).preprocessing)


def costs(source: Path, code: Path) -> Cost:
    """Of the model of a weights file."""
    model, trained = weights.model_of(source, code)
    return cost(model, weights.example(trained))


def narrowed(
    run: RunFolder,
    rung: str,
    sparse: str,
    source: Path,
    keep: float,
    teachers: Mapping[str, Path],
    lesson: Lesson,
) -> Path:
    """The weights file of `rung` before it learns: that of its parent, `source`, of which `keep` is left.

    Where the spiral has it so, the parent is drawn towards fewer channels before, under the name `sparse`. Kept where
    it is already there. Raises UnreachableError where so much can't be taken away.
    """
    dataset, section = lesson.dataset, lesson.recipe.spiral
    assert section is not None
    options = _options(section, direction(section), keep)
    recipe = lesson.recipe.model_copy(update={"prune": options})
    if options.sparse:
        penalty = prune.sparse_penalty(recipe, dataset, source)
        facts: dict[str, object] = {"sparse": options.sparse.model_dump()}
        training = sparse_training(recipe)
        unheard = replace(lesson, recipe=recipe, say=unsaid)  # what there is to say is said when it is taught again
        source = refine(run, sparse, source, teachers, unheard, training=training, penalty=penalty, facts=facts)
    out = run.weights(f"{rung}-start")
    samples = prune.training_samples(recipe, dataset)
    if not weights.load_matching(out, prune.mark(source, options, recipe.seed, samples)):
        prune.prune(source, out, options, samples, recipe.folder, seed=recipe.seed, progress=lesson.progress)
    return out


def structure(path: Path) -> str:
    """A hash of what was taken out of the model of a weights file."""
    return fingerprint(changes=[change.model_dump(mode="json") for change in weights.record(path).changes])


def _options(section: SpiralSection, by: str, keep: float) -> PruneSection:
    chosen: dict[str, Any] = section.model_dump(include=set(Pruning.model_fields)) | {by: keep}
    if by == "latency":
        chosen["backend"] = section.backend
    return PruneSection(**chosen, sparse=section.sparse)
