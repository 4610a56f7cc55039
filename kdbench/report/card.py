"""The model card: what a file is, how good and how fast it was measured to be, and where it comes from."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from importlib.resources import files
from typing import Any

from kdbench.records import IMPORTED, Artifact, Recipe, TensorSpec
from kdbench.report.circumstances import JUDGED
from kdbench.report.ladder_tables import ladder_tables
from kdbench.report.markdown import template_environment
from kdbench.report.table import Ladder
from kdbench.report.text import count, size

SHOWN_CLASSES = 200

TASKS = {
    "classification": "Says which of {} classes a sample belongs to",
    "multi_label": "Says which of {} labels hold for a sample, any number of them",
}


def model_card(
    artifact: Artifact,
    *,
    title: str,
    lineage: Sequence[Artifact] = (),
    ladder: Ladder | None = None,
    license: str | None = None,
    classes: Sequence[str] = (),
    takes: TensorSpec | None = None,
    usage: str = "",
    data: Sequence[str] = (),
    measured_on: str = "",
) -> str:
    """A model card in Markdown with the front matter of Hugging Face.

    `lineage` are the artifact's ancestors, the first of them its parent. Of the `ladder`, where there is one, the rows
    of the artifact and its baseline are shown; `measured_on` adds what should be known of them. `takes` is the input
    where it isn't the artifact's own, and `classes` where it names none; `usage` is Markdown, `data` one line each.
    """
    spec = takes or artifact.inputs[0]
    source = files(__package__).joinpath("card.md.j2").read_text(encoding="utf-8")
    environment = template_environment()
    environment.filters["options"] = _options
    rows = _rows(artifact, ladder) if ladder else None
    what = [
        f"{count(artifact.parameters)} parameters",
        *([] if artifact.macs is None else [f"{count(artifact.macs)} multiply-accumulates a sample"]),
        artifact.precision,
        size(artifact.size_bytes),
        f"ONNX opset {artifact.opset}",
    ]
    known = artifact.classes or tuple(classes)
    shown = ", ".join(known[:SHOWN_CLASSES]) + (", …" if len(known) > SHOWN_CLASSES else "")
    return (
        environment.from_string(source)
        .render(
            front=_front_matter(artifact, spec, license, ladder),
            title=title,
            what=f"{TASKS[artifact.task].format(len(known) or _width(artifact))}: {', '.join(what)}",
            artifact=artifact,
            usage=usage,
            classes=shown or "The model names none: they are numbered from 0.",
            section=rows,
            tables=ladder_tables(rows) if rows else [],
            judged=JUDGED[rows.metric] if rows else "",
            measured_on=measured_on,
            data=data or ["Nothing is recorded of them where it was made."],
            lineage=(artifact, *lineage),
            license=license,
        )
        .strip()
        + "\n"
    )


def data_lines(recipe: Recipe, samples: int | None) -> list[str]:
    """What a recipe says of data and training, and on how many `samples` it was evaluated."""
    training = recipe.student.training
    lines = [f"Recipe {recipe.name}: {recipe.description or 'without a description'}."]
    options = _options(recipe.data.options)
    lines.append(f"Data: source {recipe.data.source}{f' ({options})' if options != '–' else ''}.")
    if samples is not None:
        split = "the test split" if recipe.data.split == "test" else "a part of the training set, left out of it"
        lines.append(f"Evaluated on {samples} samples, {split}.")
    lines.append(
        f"Student: {recipe.student.model}, {training.epochs} epochs of {training.optimizer}, learning rate "
        f"{training.learning_rate:g}, seed {recipe.seed}."
    )
    losses = ", ".join(recipe.distill.losses)
    lines.append(
        f"Taught by {', '.join(teacher.model for teacher in recipe.teachers)}, {recipe.distill.mode}, by {losses}."
    )
    return lines


def _rows(artifact: Artifact, ladder: Ladder) -> Ladder | None:
    """The ladder with this artifact's rows and its baseline's alone; None where it was not measured there."""
    if artifact.sha256 not in {known.sha256 for known in ladder.result.artifacts if known.rung == artifact.rung}:
        return None
    rungs = (artifact.rung, ladder.result.baseline)
    return replace(ladder, rows=tuple(row for row in ladder.rows if row.rung in rungs))


def _front_matter(artifact: Artifact, spec: TensorSpec, license: str | None, ladder: Ladder | None) -> list[str]:
    """YAML, in the part of it that JSON is too."""
    tag = _pipeline_tag(artifact, spec)
    recipe = ladder.result.recipe if ladder else None
    fields: dict[str, Any] = {
        "license": license,
        "library_name": "onnx",
        "pipeline_tag": tag,
        "tags": ["onnx", "onnxruntime", "kdbench", artifact.precision, *(["distillation"] if recipe else [])],
        "metrics": ["f1" if artifact.task == "multi_label" else "accuracy"] if ladder else None,
    }
    return [f"{name}: {json.dumps(value)}" for name, value in fields.items() if value is not None]


def _pipeline_tag(artifact: Artifact, spec: TensorSpec) -> str | None:
    """Hugging Face's name of the task, where the input tells it, as that of models made here does."""
    if artifact.step in (None, IMPORTED):
        return None
    match len(spec.shape), spec.dtype:
        case 4, "uint8":
            return "image-classification"
        case 2, "int32" | "int64":
            return "text-classification"
        case 2, "float32":
            return "tabular-classification"
        case _:
            return None


def _options(options: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {_plain(value)}" for name, value in options.items()) or "–"


def _plain(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _width(artifact: Artifact) -> int | str:
    shape = artifact.outputs[0].shape
    return shape[-1] if shape and isinstance(shape[-1], int) else "some"
