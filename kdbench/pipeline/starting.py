"""From a teacher and data to a recipe: both are looked at, and what was found is written beside each value."""

import re
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kdbench.backends import BACKENDS
from kdbench.backends.available import why_unavailable
from kdbench.data.dataset import Dataset
from kdbench.data.generated import batch_size
from kdbench.errors import UserError
from kdbench.pipeline import describing, sections
from kdbench.pipeline.describing import Fact
from kdbench.pipeline.learning import needs_torch
from kdbench.pipeline.writing import written
from kdbench.progress import Progress, duration, silent
from kdbench.records import Recipe, Teacher, parse, recipe_from_toml, slug
from kdbench.report.text import count, percent
from kdbench.store import output_file, write_atomic

if TYPE_CHECKING:
    from kdbench.pipeline.looking import Look
    from kdbench.teachers import Candidate

POOR = 0.5
"""Below this accuracy on samples of the training set a teacher is said to be a poor one."""


@dataclass(frozen=True)
class Start:
    """A recipe that was written."""

    file: Path
    recipe: Recipe
    facts: tuple[Fact, ...]
    """What was found, of what."""
    warnings: tuple[str, ...]
    """What should be looked into before anything is trained."""


def init(
    teacher: str | Path,
    data: str | Path,
    *,
    model: str | None = None,
    options: Mapping[str, Any] | None = None,
    data_options: Mapping[str, Any] | None = None,
    class_map: Mapping[str, str] | None = None,
    student: str | None = None,
    student_options: Mapping[str, Any] | None = None,
    out: str | Path | None = None,
    name: str | None = None,
    progress: Progress = silent,
) -> Start:
    """Writes a commented recipe for a teacher and data, in `out` (default `NAME.toml`), after a look at both.

    `teacher` is an ONNX file, a state_dict with its `model` and `options`, a folder of Hugging Face or timm,
    `source:name` of a hub, `module.py:function`, or a model of the zoo, which is then to be trained; `data` is what
    `detect` knows, or a recipe of the zoo, whose data is taken. The teacher is shown training samples, never those of
    the test split. Raises UserError where the two don't fit, or `out` exists; nothing is written then.
    """
    teacher = str(teacher)
    name = name or f"{slug(_stem(teacher))}-{slug(_stem(str(data)))}"
    file = output_file(out or f"{name}.toml")
    if file.exists():
        raise UserError(f"{file}: exists already: choose another --out")
    needs_torch()
    from torch import nn

    from kdbench.pipeline import choosing
    from kdbench.steps import check as fitting

    named = sections.teacher_section(teacher, model, dict(options or {}))
    data_part, data_said = sections.data_section(str(data), data_options or {})
    data_part = sections.on_teachers_tokens(data_part, named, data_options or {})
    dataset = _dataset(data_part, named.section)
    family = choosing.family(data_part["source"], dataset)
    part, candidate, said = _candidate(named, dataset, family, dict(class_map or {}), file.parent)
    box = candidate.model
    with nullcontext() if isinstance(box, nn.Module) else box:
        part, look = _looked(part, candidate, named, dataset)
    size = _parameters(candidate)
    chosen, chosen_options = _student(student, dict(student_options or {}), family, dataset, size)
    distill, distill_said = _distill(dataset)
    plain = {
        "name": slug(name),
        "description": f"{_stem(teacher)} to {_stem(chosen)} on {_stem(str(data))}",
        "threads": choosing.threads(family),
        "data": {**data_part, "augment": choosing.augmentation(family, dataset)},
        "teacher": part,
        "student": {
            "model": chosen,
            "options": chosen_options,
            "training": choosing.training(family, len(dataset.x_train)),
        },
        "distill": distill,
        "bench": _bench(candidate),
    }
    warnings = _warnings(look, dataset, "training" in part)
    looked = [*said, *([] if look is None else _lines(look, dataset))]
    if dataset.y_train is None:
        looked.append("the data has no labels to train on: how good the teacher is can't be told")
    teacher_said = f"{named.said}; {count(size)} parameters"
    words = {
        "file": file,
        "data_said": f"{describing.samples(dataset)}{''.join(f'; {line}' for line in data_said)}",
        "teacher_said": teacher_said,
        "looked": [*looked, *warnings],
        "distill_said": distill_said,
    }
    draft = recipe_from_toml(written(plain, words, "", []), str(file)).placed(file.parent)
    fitting.check(draft, dataset)
    expected = _expected(draft, dataset, progress)
    own = choosing.parameters(chosen, chosen_options, dataset) if ":" not in chosen else 0
    student_said = f"for {family.kind}{_share(own, size)}"
    text = written(plain, words, student_said, [f"Expect {expected}."])
    recipe = recipe_from_toml(text, str(file)).placed(file.parent)
    write_atomic(file, text)
    if own > size:
        warnings.append(f"the student {chosen} is larger than its teacher: name a smaller one with --student")
    facts = (
        *describing.data_facts(recipe, dataset),
        *(("data", line) for line in data_said),
        ("teacher", teacher_said),
        *(("teacher", line) for line in looked),
        ("student", f"{chosen}, {student_said}"),
        ("time", expected),
    )
    return Start(file, recipe, facts, tuple(warnings))


def _expected(draft: Recipe, dataset: Dataset, progress: Progress) -> str:
    """How long the training of a recipe will take, by a few steps of it."""
    from kdbench.pipeline.checking import tried

    times = tried(draft, dataset, progress)
    return f"about {duration(sum(times.values()))} of training on this machine, by a few steps of each"


def _student(
    name: str | None, options: dict[str, Any], family: Any, dataset: Dataset, size: int
) -> tuple[str, dict[str, Any]]:
    """The student of that name, or one for the data and a teacher of `size` parameters; with its options."""
    from kdbench.pipeline import choosing

    if name is not None:
        return name, choosing.with_vocabulary(name, options, dataset)
    chosen, fitting = choosing.student(family, dataset, size)
    return chosen, fitting | options


def _share(own: int, size: int) -> str:
    """How large a student of `own` parameters is beside a teacher of `size`, where that is known."""
    share = f", {100 * own / size:.3g} % of the teacher's" if size else ""
    return f": {count(own)} parameters{share}" if own else ""


def _stem(text: str) -> str:
    """Of a path or name, without what comes in front of it and the kind of file."""
    last = re.split(r"[/:]", text.rstrip("/"))[-1]
    return last.rsplit(".", 1)[0] if "." in last.strip(".") else last


def _dataset(part: dict[str, Any], section: Mapping[str, Any]) -> Dataset:
    """The data; classes that no label tells are those of an ONNX teacher. `part` gets them as an option."""
    from kdbench import data
    from kdbench.records import Data

    options = part["options"]
    if options.get("labelled") is False and "classes" not in options and section.get("source") == "onnx":
        options["classes"] = list(sections.classes_of(section["model"]))
    return data.load(parse(Data, part, "data"))


def _candidate(
    named: sections.Named, dataset: Dataset, family: Any, class_map: dict[str, str], folder: Path
) -> tuple[dict[str, Any], "Candidate", list[str]]:
    """The teacher's section, with what it takes to fit its classes to the data's, the teacher, and what was done."""
    from kdbench.pipeline.choosing import teacher_training, with_vocabulary
    from kdbench.teachers import prepare
    from kdbench.teachers.classes import MismatchError

    part = dict(named.section) | ({"class_map": class_map} if class_map else {})
    source, samples = part.get("source", "zoo"), len(dataset.x_train)
    if named.untrained:
        if source == "zoo":
            part["options"] = with_vocabulary(part["model"], part.get("options", {}), dataset)
        part["training"] = teacher_training(family, samples, source, part["model"], new_head=False)
    try:
        return part, prepare(parse(Teacher, part, "teacher"), dataset, folder), []
    except MismatchError as mismatch:
        by_name = _by_name(mismatch.own, dataset.classes)
        if by_name and not class_map:
            part["class_map"] = by_name
            said = f"{len(mismatch.own)} classes of its own, mapped to the data's by their names"
        elif source == "onnx":
            some = ", ".join(mismatch.own[:5]) + (", …" if len(mismatch.own) > 5 else "")
            raise UserError(
                f"{part['model']}: answers {len(mismatch.own)} classes ({some}), the data has "
                f"{len(dataset.classes)}: say with --class-map OWN=CLASS which of them stands for each"
            ) from None
        else:
            part.pop("classes", None)
            part["new_head"] = True
            part["training"] = teacher_training(family, samples, source, part["model"], new_head=True)
            said = (
                f"{len(mismatch.own)} classes of its own, not the data's {len(dataset.classes)}: it gets a new head, "
                "and is trained on the data"
            )
        return part, prepare(parse(Teacher, part, "teacher"), dataset, folder), [said]


def _by_name(own: Sequence[str], data: Sequence[str]) -> dict[str, str]:
    """From a teacher's classes to those of the data's with the same words, if all of these are found; numbers tell
    nothing."""
    from kdbench.teachers.classes import named as have_names

    def words(name: str) -> str:
        return re.sub(r"[\W_]+", " ", name).strip().lower()

    meant = {words(name): name for name in data}
    found = {name: meant[words(name)] for name in own if words(name) in meant}
    return found if set(found.values()) == set(data) and have_names(data) else {}


def _looked(
    part: dict[str, Any], candidate: "Candidate", named: sections.Named, dataset: Dataset
) -> tuple[dict[str, Any], "Look | None"]:
    """The section with the normalisation and the order of classes that a look at the teacher's answers shows."""
    from kdbench.pipeline.looking import OWN, look

    if dataset.y_train is None or "training" in part:
        return part, None
    stated = named.stated or candidate.preprocessing is not dataset.preprocessing
    found = look(candidate, dataset, stated)
    part = dict(part)
    if found.preprocessing is not None and not stated and found.normalisation != OWN:
        part["preprocessing"] = found.preprocessing.model_dump(mode="json")
    if found.order:
        from kdbench.teachers.classes import named as have_names

        meant = [dataset.classes[place] for place in found.order]
        if have_names(dataset.classes):
            part["classes"] = meant
        else:
            part["class_map"] = {str(output): name for output, name in enumerate(meant)}
    return part, found


def _parameters(candidate: "Candidate") -> int:
    from torch import nn

    model = candidate.model
    return sum(t.numel() for t in model.parameters()) if isinstance(model, nn.Module) else model.artifact.parameters


def _distill(dataset: Dataset) -> tuple[dict[str, Any], str]:
    """The section with losses and their temperature, and a word on them."""
    multi = dataset.task == "multi_label"
    soft, hard, temperature = ("multi_label", "binary_cross_entropy", 2.0) if multi else ("kd", "cross_entropy", 4.0)
    if dataset.y_train is None:
        only = {"losses": {soft: 1.0}, "temperature": temperature}
        return only, "by the teacher's answers alone; others: docs/methods.md"
    both = {"losses": {hard: 0.1, soft: 0.9}, "temperature": temperature}
    return both, "mostly by the teacher's answers, a little by labels: docs/methods.md"


def _bench(candidate: "Candidate") -> dict[str, Any]:
    """The backends of this machine, and batches that the teacher can take."""
    backends = [name for name, row in BACKENDS.items() if row.runner == "ort" and why_unavailable(name) is None]
    artifact = getattr(candidate.model, "artifact", None)
    fixed = artifact and batch_size(artifact.inputs)
    return {"backends": backends or ["cpu"], "batches": [fixed] if fixed else [1, 32]}


def _lines(look: "Look", dataset: Dataset) -> list[str]:
    """What a look has shown, a line each."""
    metric = "micro F1" if dataset.task == "multi_label" else "right"
    normalised = f", normalised {look.normalisation}" if dataset.preprocessing else ""
    lines = [
        f"{percent(look.accuracy)} {metric} on {look.samples:,} training samples (more than on others, if it learnt "
        f"from them){normalised}"
    ]
    if look.tried:
        tries = ", ".join(f"{found.name} {percent(found.accuracy)}" for found in look.tried)
        lines.append(f"normalisations tried, with classes in the best order: {tries}")
        if look.tried[0].strangeness is not None:
            lines.append(
                "of those that are equally right, the one whose samples are least strange to its first batch norm"
            )
    if look.order:
        lines.append(
            f"its classes are in another order: {percent(look.ordered)} with each output taken for what it mostly means"
        )
    return lines


def _warnings(look: "Look | None", dataset: Dataset, trained: bool) -> list[str]:
    if look is None or trained:
        return []
    accuracy = look.ordered if look.order else look.accuracy
    if dataset.task != "multi_label" and accuracy <= look.chance + 0.02:
        return [
            f"the teacher is right on {percent(accuracy)}, no better than the most frequent class alone "
            f"({percent(look.chance)}): are its classes and its inputs those of the data?"
        ]
    if accuracy < POOR:
        better = f"; {percent(look.ordered)} in the best order of classes" if look.ordered > accuracy + 0.05 else ""
        return [
            f"the teacher is right on {percent(accuracy)} only{better}: are its classes and its inputs those of the "
            "data?"
        ]
    return []
