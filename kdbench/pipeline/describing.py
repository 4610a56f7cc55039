"""What a check has seen of a recipe, in a few words each."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from kdbench.benchmark.cells import Cell
from kdbench.data.dataset import Dataset
from kdbench.records import Artifact, Recipe
from kdbench.report.text import count

Fact = tuple[str, str]
"""Of what, and the words."""

SHOWN = 5


def data_facts(recipe: Recipe, dataset: Dataset) -> list[Fact]:
    return [("data", f"{recipe.data.source}: {samples(dataset)}"), ("classes", classes(dataset))]


def samples(dataset: Dataset) -> str:
    """How many samples there are, of which shape."""
    tokens = dataset.preprocessing is None
    shape = "×".join(map(str, dataset.x_train.shape[1:])) + (" token ids" if tokens else f" {dataset.x_train.dtype}")
    parts = [f"{len(dataset.x_train):,} to train on" + ("" if dataset.y_train is not None else " without labels")]
    if dataset.x_held_out is not None:
        parts.append(f"{len(dataset.x_held_out):,} held out")
    parts.append(f"{len(dataset.x_test):,} to test" + ("" if dataset.y_test is not None else " without labels"))
    return f"{', '.join(parts)}, each {shape}"


def classes(dataset: Dataset) -> str:
    some = ", ".join(dataset.classes[:SHOWN]) + (", …" if len(dataset.classes) > SHOWN else "")
    kind = ", any number of them a sample" if dataset.task == "multi_label" else ""
    return f"{len(dataset.classes)}{kind}: {some}"


def teacher_facts(recipe: Recipe, dataset: Dataset, artifacts: Mapping[str, Artifact]) -> list[Fact]:
    facts = []
    for name, section in zip(recipe.teacher_names, recipe.teachers, strict=True):
        artifact = artifacts.get(name)
        said = [f"{section.source} {section.model}"]
        said.append(f"{count(artifact.parameters)} parameters" if artifact else "knows a part of the classes: no rung")
        said.append(f"trained here for {section.training.epochs} epochs" if section.training else "taken as it is")
        if artifact and artifact.preprocessing != dataset.preprocessing:
            said.append("a preprocessing of its own")
        if section.classes or section.class_map:
            said.append("its classes mapped to the data's")
        facts.append((name, ", ".join(said)))
    return facts


def student_facts(recipe: Recipe, artifacts: Mapping[str, Artifact]) -> list[Fact]:
    own = artifacts["student"].parameters
    said = [recipe.student.model, f"{count(own)} parameters", f"{recipe.student.training.epochs} epochs"]
    teacher = next((artifact for name, artifact in artifacts.items() if name.startswith("teacher")), None)
    if teacher and teacher.parameters:
        said.insert(2, f"{100 * own / teacher.parameters:.3g} % of the teacher's")
    return [("student", ", ".join(said))]


def loss_facts(metrics: Path) -> list[Fact]:
    """The student's losses in its first steps, without their weights."""
    first = json.loads(metrics.read_text(encoding="utf-8").splitlines()[0])
    parts = [f"{key.removeprefix('loss.')} {value:.3g}" for key, value in first.items() if key.startswith("loss.")]
    return [("losses", f"{', '.join(parts)} in the first steps, before their weights")]


def backend_facts(opened: Sequence[tuple[Cell, str | None]]) -> list[Fact]:
    """What ran on each backend, and why the rest can't."""
    facts = []
    for backend in dict.fromkeys(str(cell.backend) for cell, _ in opened):
        errors = {cell.subject.artifact.rung: error for cell, error in opened if str(cell.backend) == backend}
        ran = [rung for rung, error in errors.items() if error is None]
        reasons = dict.fromkeys(error.removeprefix(f"{backend}: ") for error in errors.values() if error)
        facts.append((backend, "; ".join([f"opened {', '.join(ran)}"] * bool(ran) + list(reasons))))
    return facts
