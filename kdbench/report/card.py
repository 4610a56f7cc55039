"""The model card: what a file is, how good and how fast it was measured to be, and where it comes from."""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.resources import files
from typing import Any

from kdbench.progress import duration
from kdbench.records import Artifact, Embedded, Measured, Preprocessing, Recipe, TensorSpec, placeless
from kdbench.report.front_matter import METRICS, front_matter
from kdbench.report.markdown import JUDGED, reproduced_by, template_environment
from kdbench.report.scenario_tables import scenario_tables
from kdbench.report.table import Ladder
from kdbench.report.text import count, ladder_tables, mark, points, size

SHOWN_CLASSES = 200

TASKS = {
    "classification": "Says which of {} classes a sample belongs to",
    "multi_label": "Says which of {} labels hold for a sample, any number of them",
}

HASH = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class Seen:
    """A measurement of the artifact, or of one that answers as it does."""

    ladder: Ladder
    rung: str
    """What the artifact is called there."""
    metrics: tuple[Measured, ...] = ()
    how: str = ""
    """The step by which the artifact was made of what was measured; empty for the very file."""
    proven: bool = True
    """Whether that is seen, not only said by the artifact."""


def model_card(
    artifact: Artifact,
    facts: Embedded,
    *,
    title: str,
    lineage: Sequence[Artifact] = (),
    seen: Sequence[Seen] = (),
    classes: Sequence[str] = (),
    takes: TensorSpec | None = None,
    usage: str = "",
    measured_on: str = "",
    source: str | None = None,
) -> str:
    """A model card in Markdown with the front matter of Hugging Face.

    `facts` are those that stand in the file. `lineage` are the artifact's ancestors, the first of them its parent. Of
    each measurement that has been `seen`, the rows of the artifact and its baseline are shown; `measured_on` adds what
    should be known of them. `takes` is the input where it isn't the artifact's own, and `classes` where it names none;
    `usage` is Markdown; `source` the address where the metrics are published.
    """
    spec = takes or (artifact.inputs[0] if artifact.inputs else TensorSpec(name="none", dtype="none", shape=()))
    environment = template_environment()
    environment.filters |= {"options": _options, "hash": _hash}
    recipe = _recipe(seen)
    steps = {
        step for step in (artifact.step, *(one.step for one in lineage), *(one.step for one in facts.lineage)) if step
    }
    known = artifact.classes or tuple(classes)
    shown = ", ".join(known[:SHOWN_CLASSES]) + (", …" if len(known) > SHOWN_CLASSES else "")
    what = [
        f"{count(artifact.parameters)} parameters",
        *([] if artifact.macs is None else [f"{count(artifact.macs)} multiply-accumulates a sample"]),
        artifact.precision,
        size(artifact.size_bytes),
        f"ONNX opset {artifact.opset}",
    ]
    samples = next((one.ladder.result.inputs_sha256 for one in seen if one.metrics), None)
    return (
        environment.from_string(files(__package__).joinpath("card.md.j2").read_text(encoding="utf-8"))
        .render(
            front=front_matter(
                artifact,
                spec,
                title=title,
                steps=steps,
                license=facts.license,
                recipe=recipe,
                named=facts.recipe,
                metrics=facts.metrics,
                samples_sha256=samples,
                source=source,
            ),
            title=title,
            what=f"{TASKS[artifact.task].format(len(known) or _width(artifact))}: {', '.join(what)}",
            artifact=artifact,
            inputs=[takes] if takes else artifact.inputs,
            prepared=_prepared(artifact.preprocessing) if takes is None else "",
            usage=usage,
            classes=shown,
            made=_made(artifact, facts, lineage, seen),
            training=_training(recipe, artifact, steps) if recipe else [],
            evaluation=_evaluation(recipe, facts.metrics, samples),
            metrics=_metrics(facts.metrics, seen),
            notes=_notes(seen),
            places=[_place(one) for one in seen],
            measured_on=measured_on,
            recipe=facts,
            again=next(filter(None, (reproduced_by(one.ladder.result) for one in seen)), None),
            version=facts.version,
            license=facts.license,
        )
        .strip()
        + "\n"
    )


def _recipe(seen: Sequence[Seen]) -> Recipe | None:
    found = next((one.ladder.result.recipe for one in seen if one.ladder.result.recipe), None)
    return placeless(Recipe, found) if found else None


def _prepared(preprocessing: Preprocessing | None) -> str:
    """What samples go through before the file, in words."""
    if preprocessing is None:
        return "what they go through before is not recorded"
    if preprocessing == Preprocessing():
        return "nothing has to be done to them before"
    mean, std = (", ".join(f"{value:.6g}" for value in values) for values in (preprocessing.mean, preprocessing.std))
    of = "of each channel" if len(preprocessing.mean) > 1 else "of all"
    scaled = f"each is (x × {preprocessing.scale:.6g} − mean) ÷ deviation of the stored x"
    return f"{scaled}: mean {mean}, deviation {std}, {of}"


def _made(
    artifact: Artifact, facts: Embedded, lineage: Sequence[Artifact], seen: Sequence[Seen]
) -> list[dict[str, Any]]:
    """A line for the artifact and each of its ancestors: those with records, then those that the file alone names."""
    made: list[dict[str, Any]] = []
    for one in (artifact, *lineage):
        made.append({"rung": one.rung, "parent": one.parent, "step": one.step, "options": one.options,
                     "sha256": one.sha256, **_cost(one, seen)})  # fmt: skip
    known = {line["sha256"] for line in made}
    made += [
        {
            "rung": one.rung,
            "parent": None,
            "step": one.step,
            "options": {},
            "sha256": one.sha256,
            "took": "–",
            "difference": "–",
        }
        for one in facts.lineage
        if one.sha256 not in known
    ]
    return made


def _cost(artifact: Artifact, seen: Sequence[Seen]) -> dict[str, str]:
    """What making it took, and its paired difference to its parent, where either is known."""
    took = artifact.made_in_s
    for one in seen:
        rungs = {known.sha256: known for known in one.ladder.result.artifacts}
        known = rungs.get(artifact.sha256)
        if known is None:
            continue
        took = took if took is not None else known.made_in_s
        row = next((row for row in one.ladder.rows if row.rung == known.rung and row.parent_difference), None)
        if row:
            return {"took": _took(took), "difference": points(row.parent_difference)}
    return {"took": _took(took), "difference": "–"}


def _took(made_in_s: float | None) -> str:
    return "–" if made_in_s is None else duration(made_in_s)


def _training(recipe: Recipe, artifact: Artifact, steps: set[str]) -> list[str]:
    """What the recipe says of the data and of the training that the artifact has behind it."""
    options = _options(recipe.data.options)
    samples = "all" if recipe.data.train_samples is None else recipe.data.train_samples
    lines = [
        f"Recipe {recipe.name}: {recipe.description or 'without a description'}.",
        f"Data: source {recipe.data.source}{f' ({options})' if options != '–' else ''}, {samples} of its training "
        f"samples, {recipe.data.calibration_samples} of them for calibration.",
    ]
    if artifact.rung.startswith("teacher"):
        for teacher in recipe.teachers:
            trained = (
                f"{teacher.training.epochs} epochs of {teacher.training.optimizer}, learning rate "
                f"{teacher.training.learning_rate:g}"
                if teacher.training
                else "taken as it is"
            )
            lines.append(f"Teacher: {teacher.source} {teacher.model}, {trained}, seed {recipe.seed}.")
        return lines
    training = recipe.student.training
    lines.append(
        f"Student: {recipe.student.model}, {training.epochs} epochs of {training.optimizer}, learning rate "
        f"{training.learning_rate:g}, seed {recipe.seed}."
    )
    if steps & {"distill", "spiral"}:
        losses = ", ".join(recipe.distill.losses)
        lines.append(
            f"Taught by {', '.join(teacher.model for teacher in recipe.teachers)}, {recipe.distill.mode}, by {losses}."
        )
    return lines


def _evaluation(recipe: Recipe | None, metrics: Sequence[Measured], samples_sha256: str | None) -> list[str]:
    lines = []
    for samples in dict.fromkeys(one.samples for one in metrics):
        split = ""
        if recipe:
            split = (
                ", the test split" if recipe.data.split == "test" else ", a part of the training set, left out of it"
            )
        lines.append(f"Evaluated on {samples} samples{split}.")
    if lines and samples_sha256:
        lines.append(f"They lie in a pack whose sha256 is {samples_sha256}.")
    return lines


def _metrics(metrics: Sequence[Measured], seen: Sequence[Seen]) -> list[dict[str, str]]:
    """A line each, with the marks of the footnotes of the cells that the answers are from."""
    numbers = {note: number for number, note in enumerate(_notes(seen), 1)}
    lines = []
    for one in metrics:
        flags = [
            flag
            for place in seen
            if one in place.metrics
            for row in place.ladder.rows
            if (row.rung, row.backend, row.threads) == (place.rung, one.backend, one.threads)
            for flag in row.flags
        ]
        value, low, high = (None if share is None else f"{100 * share:.2f}" for share in (one.value, one.low, one.high))
        lines.append({
            "name": METRICS[one.metric][1],
            "value": f"{value} %",
            "interval": "–" if low is None else f"[{low}, {high}]",
            "samples": str(one.samples),
            "through": f"{one.backend}, {one.threads} thread{'s' if one.threads > 1 else ''}",
            "machine": one.cpu,
            "date": one.date,
            "marks": " ".join(mark(numbers[flag]) for flag in dict.fromkeys(flags) if flag in numbers),
        })  # fmt: skip
    return lines


def _notes(seen: Sequence[Seen]) -> list[str]:
    """What is said beside the artifact's own cells where its answers were judged."""
    return list(
        dict.fromkeys(
            flag
            for place in seen
            for row in place.ladder.rows
            for one in place.metrics
            if (row.rung, row.backend, row.threads) == (place.rung, one.backend, one.threads)
            for flag in row.flags
        )
    )


def _place(seen: Seen) -> dict[str, Any]:
    """A machine's section: the rows of the artifact and of the baseline, and what they were measured under."""
    result, rungs = seen.ladder.result, (seen.rung, seen.ladder.result.baseline)
    shown = replace(
        seen.ladder,
        rows=tuple(row for row in seen.ladder.rows if row.rung in rungs),
        scenarios=tuple(row for row in seen.ladder.scenarios if row.rung in rungs),
    )
    backends = {m.backend: m.versions for m in (*result.measurements, *result.scenarios) if m.versions}
    cells = list(dict.fromkeys((row.backend, row.error) for row in shown.rows if row.error))
    return {
        "result": result,
        "how": seen.how,
        "proven": seen.proven,
        "rung": seen.rung,
        "tables": [*ladder_tables(shown), *scenario_tables(shown)],
        "failed": [f"{backend}: {error}" for backend, error in cells],
        "judged": JUDGED[shown.metric] if result.inputs == "data" else "",
        "environments": {name: versions for name, versions in backends.items() if "@" in name},
    }


def _options(options: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {_plain(value)}" for name, value in options.items()) or "–"


def _plain(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _hash(text: str) -> str:
    """As code, where it is one: what a record calls a hash may be anything."""
    return f"`{text}`" if HASH.fullmatch(text) else "–"


def _width(artifact: Artifact) -> int | str:
    shape = artifact.outputs[0].shape if artifact.outputs else ()
    return shape[-1] if shape and isinstance(shape[-1], int) else "some"
