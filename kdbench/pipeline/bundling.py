"""An artifact as a folder that ships: the ONNX file, a script of a few lines that runs it, and its card."""

import json
import re
import textwrap
from collections.abc import Callable
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

import jinja2

from kdbench.benchmark.cells import Subject
from kdbench.data.generated import batch_size
from kdbench.data.pack import EvalPack, open_pack
from kdbench.errors import UserError, pick
from kdbench.onnxfile import known_artifact
from kdbench.pipeline.rungs import ORDER, run_subjects
from kdbench.progress import unsaid
from kdbench.records import Artifact, Recipe, TensorSpec, placeless
from kdbench.report.card import data_lines, model_card
from kdbench.report.table import Ladder, ladder
from kdbench.steps.bundle import Bundled, bundle_model
from kdbench.store import RESULTS_FILE, RunFolder, load_result, new_folder, sidecar, write_atomic

BATCH = 32
"""Samples that the script answers at a time, where the model is free to."""

MODEL, SCRIPT, CARD = "model.onnx", "predict.py", "README.md"


@dataclass(frozen=True)
class Shipped:
    """A folder that ships."""

    folder: Path
    rung: str
    bundled: Bundled


def bundle(
    source: str | Path,
    out: str | Path,
    *,
    rung: str | None = None,
    pack: str | Path | None = None,
    license: str | None = None,
    say: Callable[[str], None] = unsaid,
) -> Shipped:
    """Makes `out` a folder with `source`, an ONNX file or a rung of a run folder, as `model.onnx` that takes raw
    samples; with `predict.py` and a model card.

    The rung is, if not given, the last of the ladder. Samples, which say what is raw, are the run's, or the `pack`'s.
    Raises UserError where `out` exists, and as `bundle_model` does; nothing is left then.
    """
    if license is not None and not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9.+-]*", license):
        raise UserError(f"--license: should be an identifier such as apache-2.0, not '{license}'")
    source, out = Path(source), Path(out)
    subject = _subject(source, rung)
    recorded = sidecar(subject.model).is_file()
    folder = RunFolder(subject.model.parent)
    if pack is None and recorded and folder.pack.is_file():
        pack = folder.pack
    samples = open_pack(pack)
    measured = _measured(folder, subject.artifact, say) if recorded else None
    recipe = measured.result.recipe if measured else None
    with new_folder(out) as made:
        bundled = bundle_model(subject.model, subject.artifact, samples, made / MODEL)
        write_atomic(made / SCRIPT, script(bundled))
        card = model_card(
            placeless(Artifact, subject.artifact),
            title=f"{recipe.name}: {subject.artifact.rung}" if recipe else subject.artifact.rung,
            lineage=[placeless(Artifact, one) for one in (_ancestors(folder, subject.artifact) if recorded else ())],
            ladder=measured,
            license=license,
            classes=subject.artifact.classes or (samples.classes if samples else ()),
            takes=bundled.input,
            usage=_usage(bundled),
            data=data_lines(placeless(Recipe, recipe), _evaluated(samples)) if recipe else (),
            measured_on=_same_as(bundled, subject),
        )
        write_atomic(made / CARD, card)
    return Shipped(out, subject.artifact.rung, bundled)


def script(bundled: Bundled) -> str:
    """`predict.py` for a model: Python that needs onnxruntime and numpy alone."""
    environment = jinja2.Environment(  # noqa: S701 — Python: `literal` writes what others have named as its strings
        trim_blocks=True, keep_trailing_newline=True, undefined=jinja2.StrictUndefined
    )
    environment.filters |= {"literal": lambda text: json.dumps(text, ensure_ascii=False), "wrap": _wrapped}
    template = environment.from_string(files(__package__).joinpath("predict.py.j2").read_text(encoding="utf-8"))
    spec, fixed = bundled.input, batch_size([bundled.input])
    several = bundled.artifact.task == "multi_label"
    return template.render(
        answers="The labels" if several else "The likeliest classes",
        several=several,
        dtype=spec.dtype,
        shape=_shape(spec),
        meaning=_meaning(bundled),
        axes=len(spec.shape),
        fixed={axis: size for axis, size in enumerate(spec.shape) if axis and isinstance(size, int)},
        batch=fixed or BATCH,
        full_batches=fixed is not None and fixed > 1,
        input=spec.name,
        probabilities=bundled.probabilities,
    )


def _subject(source: Path, rung: str | None) -> Subject:
    if not source.is_dir():
        if rung is not None:
            raise UserError(f"--rung: {source} is a file, --rung chooses in a run folder: leave it out")
        return Subject(known_artifact(source), source)
    subjects = {subject.artifact.rung: subject for subject in run_subjects(RunFolder(source))}
    if rung is not None:
        return pick(subjects, rung, "rung")
    return subjects[next((name for name in reversed(ORDER) if name in subjects), list(subjects)[-1])]


def _ancestors(folder: RunFolder, artifact: Artifact) -> list[Artifact]:
    """What it was made from, its parent first, as far as the folder knows."""
    known = {one.sha256: one for one in folder.artifacts().values()}
    found: list[Artifact] = []
    while (parent := known.get(artifact.parent_sha256 or "")) and parent not in found:
        found.append(parent)
        artifact = parent
    return found


def _measured(folder: RunFolder, artifact: Artifact, say: Callable[[str], None]) -> Ladder | None:
    """The run's own measurement, where it is of this very file."""
    path = folder.path / RESULTS_FILE
    if not path.is_file():
        return None
    try:
        found = ladder(*load_result(path))
    except UserError as error:
        say(f"no figures in the card: {error}")
        return None
    if any(one.sha256 == artifact.sha256 for one in found.result.artifacts):
        return found
    say(f"no figures in the card: {path} is of another {artifact.rung}")
    return None


def _evaluated(samples: EvalPack | None) -> int | None:
    return None if samples is None or samples.x_test is None else len(samples.x_test)


def _wrapped(text: str) -> str:
    return textwrap.fill(text, 100, break_long_words=False)


def _shape(spec: TensorSpec) -> str:
    """`[N, 3, 32, 32]`; sizes that are free read `any`."""
    return f"[{', '.join(['N', *(str(size) if isinstance(size, int) else 'any' for size in spec.shape[1:])])}]"


def _meaning(bundled: Bundled) -> str:
    """What the samples are, in a sentence."""
    low, high = bundled.values
    seen = f"values from {low:g} to {high:g} were seen"
    if bundled.generated:
        return "They are taken as the model was exported to take them: what they mean, only its maker knows."
    match len(bundled.input.shape), bundled.input.dtype:
        case 4, "uint8":
            return f"Images, channels first, not normalised: {seen}. numpy.moveaxis(x, -1, 1) puts channels first."
        case 2, "int32" | "int64":
            return f"Token ids of the tokenizer that the training data went through, which is not in here: {seen}."
        case 2, _:
            return f"A row of numbers a sample, not normalised: {seen}."
        case _:
            return f"Features as the training data had them, not normalised: {seen}. Making them is not in here."


def _usage(bundled: Bundled) -> str:
    spec, task = bundled.input, bundled.artifact.task
    outputs = {bundled.artifact.outputs[0].name: "scores, [N, classes]"}
    outputs |= {bundled.probabilities: f"of each class, [N, classes], {_made_by(bundled)}"}
    prepared = "has the preprocessing inside, and" if bundled.artifact.preprocessing else "has"
    rows = [f"| `{spec.name}` | input | {spec.dtype} {_shape(spec)}. {_meaning(bundled)} |"]
    rows += [f"| `{name}` | output | {words} |" for name, words in outputs.items()]
    threshold = "; it prints the labels above 50 %" if task == "multi_label" else ""
    return "\n".join(
        [
            "```sh",
            "pip install onnxruntime numpy",
            "python predict.py samples.npy",
            "```",
            "",
            f"`samples.npy` is what `numpy.save` writes of an array of samples{threshold}. `model.onnx` {prepared} the",
            "class names as JSON in its metadata under `classes`.",
            "",
            "| name | | what |",
            "|:---|:---|:---|",
            *rows,
        ]
    )


def _made_by(bundled: Bundled) -> str:
    if bundled.probabilities == bundled.artifact.outputs[0].name:
        return "as the model was made to answer"
    return "by a sigmoid each" if bundled.artifact.task == "multi_label" else "by softmax"


def _same_as(bundled: Bundled, subject: Subject) -> str:
    difference = bundled.artifact.metrics["parity_largest_difference"]
    kind = "generated" if bundled.generated else "real"
    return (
        f"They are of the file that `model.onnx` was made from, with sha256 `{subject.artifact.sha256}`: on "
        f"{bundled.samples} {kind} samples, by onnxruntime's CPU provider, the scores of both "
        + (f"differ by at most {difference:.2g}." if difference else "are the same.")
    )
