"""The model card: what a file is, how good and how fast it was measured to be, and where it comes from."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib.resources import files
from typing import Any

from kdbench.progress import duration
from kdbench.records import Artifact, Embedded, Measured, Preprocessing, Recipe, TensorSpec, placeless
from kdbench.report.again import again
from kdbench.report.circumstances import JUDGED
from kdbench.report.front_matter import METRICS, front_matter
from kdbench.report.ladder_tables import ladder_tables
from kdbench.report.markdown import template_environment
from kdbench.report.scenario_tables import scenario_tables
from kdbench.report.table import Ladder
from kdbench.report.text import (
    Cell,
    Column,
    Shown,
    TextTable,
    count,
    interval_cell,
    name_cell,
    number_cell,
    points,
    size,
    table_of,
)
from kdbench.stats import Interval

LONGEST_OPTION = 80
"""Signs of an option that is a list or a table; of longer ones the length is shown."""
SHOWN_CLASSES = 200

TASKS = {
    "classification": "Says which of {} classes a sample belongs to",
    "multi_label": "Says which of {} labels hold for a sample, any number of them",
}


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
    packs = {one.ladder.result.inputs_sha256 for one in seen if one.metrics}
    samples = packs.pop() if len(packs) == 1 else None
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
            made=_lineage(artifact, facts, lineage, seen),
            training=_training(recipe, artifact, steps) if recipe else [],
            evaluation=_evaluation(recipe, facts.metrics, samples),
            metrics=_metrics(facts.metrics, seen),
            places=[_place(one) for one in seen],
            measured_on=measured_on,
            recipe=facts,
            command="spiral" if "spiral" in steps else "run",
            again=next(filter(None, (again(one.ladder.result) for one in seen)), None),
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


@dataclass(frozen=True)
class _Made:
    """A file on the way to the artifact, and what it cost."""

    rung: str
    step: str | None
    sha256: str
    parent: str | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    took_s: float | None = None
    difference: Interval | None = None


def _lineage(artifact: Artifact, facts: Embedded, lineage: Sequence[Artifact], seen: Sequence[Seen]) -> TextTable:
    """A row for the artifact and each of its ancestors: those with records, then those that the file alone names."""
    made = [_made(one, seen) for one in (artifact, *lineage)]
    known = {one.sha256 for one in made}
    made += [_Made(one.rung, one.step, one.sha256) for one in facts.lineage if one.sha256 not in known]
    shown: list[Shown[_Made]] = [
        Shown(Column("rung", "rung", left=True), lambda one: name_cell(one.rung)),
        Shown(Column("parent", "parent", left=True), lambda one: name_cell(one.parent)),
        Shown(Column("step", "step", left=True), lambda one: name_cell(one.step)),
        Shown(Column("options", "options", left=True), lambda one: name_cell(_options(one.options))),
        Shown(Column("took", "made_in_s"), lambda one: number_cell(one.took_s, duration)),
        Shown(Column("Δ to parent", "parent_diff"), lambda one: interval_cell(one.difference, points)),
        Shown(Column("sha256", "sha256", left=True), lambda one: name_cell(one.sha256)),
    ]
    legend = (
        "took: without what the parent took. Δ: of the accuracy or the micro F1, in points, on the same samples, with "
        "its 95 % interval."
    )
    return table_of("How it was made", shown, made, legend=legend)


def _made(artifact: Artifact, seen: Sequence[Seen]) -> _Made:
    took_s, difference = artifact.made_in_s, None
    for one in seen:
        known = next((known for known in one.ladder.result.artifacts if known.sha256 == artifact.sha256), None)
        if known is None:
            continue
        took_s = took_s if took_s is not None else known.made_in_s
        rows = (row.parent_difference for row in one.ladder.rows if row.rung == known.rung)
        difference = difference or next(filter(None, rows), None)
    return _Made(artifact.rung, artifact.step, artifact.sha256, artifact.parent, artifact.options, took_s, difference)


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


def _metrics(metrics: Sequence[Measured], seen: Sequence[Seen]) -> TextTable | None:
    """A row each; its footnotes are those of the cells that the answers are from."""

    def said(one: Measured) -> list[str]:
        return [
            flag
            for place in seen
            if one in place.metrics
            for row in place.ladder.rows
            if (row.rung, row.backend, row.threads) == (place.rung, one.backend, one.threads)
            for flag in row.flags
        ]

    shown: list[Shown[Measured]] = [
        Shown(Column("metric", "metric", left=True), lambda one: Cell(METRICS[one.metric][1], one.metric)),
        Shown(Column("%", "value"), lambda one: Cell(_hundredths(one.value), one.value, one.low, one.high)),
        Shown(Column("95 % interval", "interval"), _limits),
        Shown(Column("samples", "samples"), lambda one: Cell(str(one.samples), one.samples)),
        Shown(Column("through", "backend", left=True), lambda one: name_cell(one.backend)),
        Shown(Column("threads", "threads"), lambda one: Cell(str(one.threads), one.threads)),
        Shown(Column("on", "cpu", left=True), lambda one: name_cell(one.cpu)),
        Shown(Column("date", "date", left=True), lambda one: name_cell(one.date)),
    ]
    legend = "Intervals are over samples: Wilson's for accuracy, a percentile bootstrap for F1."
    if not seen:
        legend = (
            f"That is what the file says of itself: the results were not at hand where this card was written. {legend}"
        )
    return table_of("Metrics", shown, metrics, said, legend) if metrics else None


def _limits(one: Measured) -> Cell:
    if one.low is None or one.high is None:
        return Cell("–")
    return Cell(f"[{_hundredths(one.low)}, {_hundredths(one.high)}]")


def _hundredths(share: float) -> str:
    return f"{100 * share:.2f}"


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
    """As JSON; of a list or table that is too long for a line how many entries it has: the record has it whole."""
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return f"{len(value)} entries" if isinstance(value, list | tuple | dict) and len(text) > LONGEST_OPTION else text


def _width(artifact: Artifact) -> int | str:
    shape = artifact.outputs[0].shape if artifact.outputs else ()
    return shape[-1] if shape and isinstance(shape[-1], int) else "some"
