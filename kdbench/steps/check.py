"""Whether a recipe fits its data, its networks and its losses, told before any training."""

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace

import torch
from torch import nn

from kdbench.data.dataset import Dataset
from kdbench.data.preprocess import apply
from kdbench.errors import UserError, first_line
from kdbench.losses.weighted import Term, WeightedSum, check_data
from kdbench.losses.weighted import terms as terms_of
from kdbench.records import Distill, Network, Recipe, Training
from kdbench.steps.teach import prepared, untrained
from kdbench.steps.train import initial, learning
from kdbench.teachers import Candidate
from kdbench.training import weights
from kdbench.training.seeds import seeded
from kdbench.training.teaching import Faculty, Teaching, sample_outputs


def check(recipe: Recipe, dataset: Dataset) -> list[Candidate]:
    """Builds everything that training needs, and trains nothing; raises UserError that names what doesn't fit.

    The teachers that it built, as they were loaded, for `teach`.
    """
    _check_judged(recipe)
    _check_untrained(recipe)
    if any(teacher.training is not None for teacher in recipe.teachers):
        dataset.train_labels("training a teacher")
    x = torch.from_numpy(apply(dataset.x_train[:2], dataset.preprocessing))
    student = initial(recipe.student, dataset, recipe.seed, "student", recipe.folder).eval()
    _check_vocabulary("student", recipe.student, dataset)
    try:
        with torch.no_grad():
            student(x)
    except RuntimeError as error:
        shape = dataset.x_train.shape[1:]
        raise UserError(
            f"student: {recipe.student.model} can't take samples of shape {shape}: {first_line(error)}"
        ) from None
    sections = [learning(section, recipe) for section in recipe.teachers]
    fields = recipe.teacher_fields
    candidates = [prepared(section, recipe, dataset, field) for section, field in zip(sections, fields, strict=True)]
    with ExitStack() as stack:
        members = [
            replace(stack.enter_context(untrained(candidate, recipe, dataset)), name=name)
            for candidate, name in zip(candidates, recipe.teacher_names, strict=True)
        ]
        _check_known(members, dataset)
        faculty = Faculty(members, dataset.preprocessing, len(dataset.classes))
        for where, distill in {"distill": recipe.distill, **_methods(recipe)}.items():
            _check_method(where, distill, recipe, dataset, student, faculty, x)
    return candidates


def _methods(recipe: Recipe) -> dict[str, Distill]:
    return {f"methods.{name}": method for name, method in recipe.methods.items()}


def _check_method(
    where: str,
    distill: Distill,
    recipe: Recipe,
    dataset: Dataset,
    student: nn.Module,
    faculty: Faculty,
    x: torch.Tensor,
) -> None:
    """Raises UserError where a way to distil doesn't fit the data or the networks."""
    terms = terms_of(distill.losses, distill.temperature, recipe.folder, recipe.student.training.epochs, where)
    check_data(terms, dataset.task, dataset.y_train is not None, where)
    augmentation = recipe.data.augment
    mixing = augmentation.mixup_alpha > 0 or augmentation.cutmix_alpha > 0
    for name in {"dkd", "crd"} & distill.losses.keys() if mixing else ():
        raise UserError(
            f"{where}.losses.{name}: needs one class a sample, which mixup and cutmix don't leave: drop either"
        )
    if distill.mode == "mutual":
        _check_mutual(where, terms, distill, faculty)
        if dataset.x_held_out is not None and dataset.y_held_out is None:
            raise UserError(f"{where}.mode: in mutual learning labels judge an epoch: leave data.held_out_samples out")
    elif distill.start_from and len(faculty.members) > 1:
        raise UserError(f"{where}.start_from: there are several teachers: leave it out")
    elif distill.start_from:
        weights.start_from(student, faculty.members[0].model, distill.start_from)
    outputs = sample_outputs(student, faculty, dataset, x, terms)
    with seeded(recipe.seed, 0):
        WeightedSum(terms, *outputs, dataset.task)


def _check_mutual(where: str, terms: Sequence[Term], distill: Distill, faculty: Faculty) -> None:
    """Raises UserError where student and teacher can't learn from each other."""
    if len(faculty.members) > 1 or not isinstance(faculty.members[0].model, nn.Module):
        raise UserError(f"{where}.mode: mutual learning is of a student and one teacher that is a network: name one")
    if not faculty.members[0].same_inputs(faculty.preprocessing):
        raise UserError(f"{where}.mode: in mutual learning both see the same inputs: leave teacher.preprocessing out")
    if distill.start_from:
        raise UserError(f"{where}.start_from: in mutual learning the teacher has nothing to give yet: leave it out")
    for term in terms:
        if term.pairs or term.name == "parameters":
            raise UserError(f"{where}.losses.{term.name}: mutual learning is by losses on logits, such as kd")


def _check_untrained(recipe: Recipe) -> None:
    """Raises UserError for mutual learning with a teacher that comes with weights, or is built by a hub."""
    ways = {"distill": recipe.distill, **_methods(recipe)}
    where = next((name for name, way in ways.items() if way.mode == "mutual"), None)
    for field, section in zip(recipe.teacher_fields, recipe.teachers, strict=True) if where else ():
        named = "weights" if section.weights else "source" if section.source != "zoo" else None
        if named:
            raise UserError(
                f"{where}.mode: in mutual learning the teacher starts untrained, as a model of the zoo or your own: "
                f"leave {field}.{named} out"
            )


def _check_known(members: Sequence[Teaching], dataset: Dataset) -> None:
    """Raises UserError where nobody teaches some of the classes: not a teacher, and not the labels."""
    known = {place for member in members for place in member.known(len(dataset.classes))}
    unknown = [name for place, name in enumerate(dataset.classes) if place not in known]
    if len(known) > min(len(member.known(len(dataset.classes))) for member in members) and (
        dataset.y_train is None and dataset.x_held_out is not None
    ):
        raise UserError(
            "data.held_out_samples: without labels only teachers that know the same classes can judge: leave it out"
        )
    if unknown and dataset.y_train is None:
        raise UserError(
            f"teacher.class_map: no teacher knows {len(unknown)} of the data's classes, such as '{unknown[0]}', and "
            "the training set has no labels: map one to each"
        )


def _check_judged(recipe: Recipe) -> None:
    """Raises UserError where a training needs held-out samples, and there are none."""
    trainings: dict[str, Training | None] = {
        field: section.training for field, section in zip(recipe.teacher_fields, recipe.teachers, strict=True)
    }
    trainings["student"] = recipe.student.training
    sections = {
        "prune": recipe.prune,
        "sparsify": recipe.sparsify,
        "factorise": recipe.factorise,
        "quantize": recipe.quantize,
    }
    trainings |= {name: section.training for name, section in sections.items() if section}
    for name, training in trainings.items() if not recipe.data.held_out_samples else ():
        asked = training and ("patience_epochs" if training.patience_epochs else training.keep == "best" and "keep")
        if asked:
            raise UserError(
                f"{name}.training.{asked}: epochs are judged on held-out samples, and there are none: "
                "set data.held_out_samples"
            )


def _check_vocabulary(name: str, network: Network, dataset: Dataset) -> None:
    """Raises UserError where the data has token ids that the network has no embedding for."""
    vocabulary = network.options.get("vocabulary")
    if vocabulary is not None:
        highest = max(dataset.x_train.max(), dataset.x_test.max())
        if highest >= int(vocabulary):
            raise UserError(f"{name}.options.vocabulary: {vocabulary}, but the data has token ids up to {highest}")
