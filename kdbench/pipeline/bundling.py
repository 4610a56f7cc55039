"""An artifact as a folder that ships: the ONNX file, a script of a few lines that runs it, and its card."""

import json
import textwrap
from collections.abc import Callable
from dataclasses import dataclass, replace
from importlib.resources import files
from pathlib import Path

import jinja2

from kdbench.benchmark.cells import Subject
from kdbench.data.generated import batch_size
from kdbench.data.pack import EvalPack, open_pack
from kdbench.evaluation import told_by
from kdbench.pipeline.carding import CARD, MODEL, card_of, check_license
from kdbench.pipeline.origins import look_up, subject_of
from kdbench.progress import unsaid
from kdbench.records import TensorSpec
from kdbench.steps.bundle import Bundled, bundle_model
from kdbench.store import new_folder, write_atomic

BATCH = 32
"""Samples that the script answers at a time, where the model is free to."""

SCRIPT = "predict.py"


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
    pack: EvalPack | str | Path | None = None,
    license: str | None = None,
    say: Callable[[str], None] = unsaid,
) -> Shipped:
    """Makes `out` a folder with `source`, an ONNX file or a rung of a run folder, as `model.onnx` that takes raw
    samples; with `predict.py` and a model card.

    The rung is, if not given, the last of the ladder. Samples, which say what is raw, are the run's, or the `pack`'s.
    Raises UserError where `out` exists, and as `bundle_model` does; nothing is left then.
    """
    check_license(license)
    source, out = Path(source), Path(out)
    subject = subject_of(source, rung, say)
    known = look_up(subject, license=license, say=say)
    if pack is None and known.folder and known.folder.pack.is_file():
        pack = known.folder.pack
    samples = open_pack(pack)
    subject = replace(subject, artifact=told_by(subject.artifact, samples))
    known = replace(known, subject=subject)
    with new_folder(out) as made:
        bundled = bundle_model(subject.model, subject.artifact, samples, made / MODEL, known.for_bundle)
        write_atomic(made / SCRIPT, script(bundled))
        card = card_of(
            known,
            classes=samples.classes if samples else (),
            takes=bundled.input,
            usage=_usage(bundled),
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
            "class names as JSON in its metadata under `kdbench.classes`.",
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
