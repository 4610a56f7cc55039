"""Quantization-aware training: the student's static int8 file, trained further under its teachers with its rounding."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from torch import nn

from kdbench.data.dataset import Dataset
from kdbench.data.pack import EvalPack
from kdbench.data.preprocess import apply
from kdbench.errors import UserError, first_line
from kdbench.evaluation import answer, compare, parity_on
from kdbench.losses.weighted import terms as terms_of
from kdbench.onnxfile import inspect, known_artifact, load_model, portable
from kdbench.quantization.targets import targeted
from kdbench.records import Artifact, Loss, Recipe, parse
from kdbench.steps.lesson import Lesson
from kdbench.steps.quantize import LEAST_AGREEMENT
from kdbench.steps.slim import comparison_inputs
from kdbench.steps.train import initial, refine
from kdbench.store import RunFolder, output_file, part_of, save_artifact, sha256, write_atomic
from kdbench.training import weights
from kdbench.training.fake_quantization import show, simulated
from kdbench.training.features import layers


def check(recipe: Recipe, dataset: Dataset) -> None:
    """Raises UserError where the recipe asks for an int8 file that could not be trained."""
    if not recipe.quantize.aware:
        return
    student = initial(recipe.student, dataset, recipe.seed, "student", recipe.folder)
    if any(isinstance(module, nn.RNNBase) for module in student.modules()):
        raise UserError(
            f"quantize.aware: static int8 leaves the recurrent layers of {recipe.student.model} in float, and they "
            "can't be trained beside it: leave it out"
        )
    options = targeted(recipe.quantize.static)
    if (options.format, options.weights) != ("qdq", "int8"):
        raise UserError(
            f"quantize.aware: trains int8 weights in format 'qdq', not {options.weights} in '{options.format}': leave "
            "either out"
        )
    at_end(recipe.distill.losses, recipe.student.training.epochs)


def train_aware(
    run: RunFolder,
    rung: str,
    student: Path,
    floating: Path,
    static: Path,
    teachers: Mapping[str, Path],
    lesson: Lesson,
    answers: RunFolder | None = None,
) -> Path:
    """Trains what the int8 file `static` computes, under teachers by name; the weights file of `rung` in `run`, with
    the tensors of `kdbench.training.fake_quantization.Graph`.

    `student` is the weights file that it comes from, `floating` its fp32 ONNX file. It learns by those of the recipe's
    losses that are left in the student's last epoch, with the weights that they have there; `lesson.say` is told of
    others. Otherwise as `refine`.
    """
    recipe = lesson.recipe
    training = recipe.quantize.training_after(recipe.student.training)
    losses = at_end(recipe.distill.losses, recipe.student.training.epochs)
    for name in sorted(recipe.distill.losses.keys() - losses.keys()):
        why = "which is over at the student's end, or reads its parameters"
        lesson.say(f"{rung} learns without the loss {name}, {why}")
    method = recipe.distill.model_copy(update={"losses": losses})
    terms = terms_of(losses, method.temperature, recipe.folder, training.epochs, "distill")

    def start() -> nn.Module:
        graph = simulated(load_model(static), load_model(floating), static)
        ours = layers(terms)[0]
        if ours:
            x = torch.from_numpy(apply(lesson.dataset.x_train[:2], lesson.dataset.preprocessing))
            show(graph, load_model(floating), weights.model_of(student, recipe.folder)[0], ours, x)
        return graph

    return refine(
        run,
        rung,
        student,
        teachers,
        lesson,
        method=method,
        training=training,
        answers=answers,
        facts={"aware": {path.stem: sha256(path.read_bytes()) for path in (floating, static)}},
        start=start,
    )


def at_end(losses: Mapping[str, Loss], epochs: int) -> dict[str, Loss]:
    """The losses of a training of so many epochs as they are in its last one, for good; those on parameters, which have
    other names in the file, left out. Raises UserError where none is left."""
    left = {}
    for name, loss in losses.items():
        over = (loss.until_epoch is not None and loss.until_epoch < epochs) or not loss.weight.end
        if over or name == "parameters":
            continue
        own = {key: _end(value) for key, value in (loss.model_extra or {}).items()}
        left[name] = parse(Loss, {**own, "weight": loss.weight.end}, f"distill.losses.{name}")
    if not left:
        raise UserError("quantize.aware: no loss is left at the end of the student's training: give one of distill's")
    return left


def _end(value: object) -> object:
    """Of a scheduled option its last value; any other as it is."""
    return value["end"] if isinstance(value, Mapping) and {"start", "end"} <= value.keys() else value


def quantize_aware(
    source: Path, floating: Path, static: Path, out: Path, pack: EvalPack, rung: str, options: Mapping[str, object]
) -> Artifact:
    """Writes the int8 file `static` with the numbers of the weights file `source` to `out`, its record beside it, with
    `options` added to the static file's.

    The file is compared with what was trained, on the pack's calibration samples: where it answers otherwise, the
    record carries a warning. Raises UserError, and writes nothing, where an output is no number.
    """
    parent = known_artifact(static)
    model = load_model(static)
    graph = simulated(model, load_model(floating), static)
    try:
        graph.load_state_dict(weights.load(source)[0])
    except RuntimeError as error:
        raise UserError(f"{source}: its tensors don't fit {static}: {first_line(error, 200)}") from None
    inputs, batch = comparison_inputs(parent, pack, {})
    samples = next(iter(inputs.values()))
    part = part_of(output_file(out, static, floating), "-unproven")
    write_atomic(part, portable(graph.eval().written(model)))
    try:
        check = parity_on(part, static, inputs, batch, task=parent.task)
        with torch.no_grad():
            trained = np.concatenate([graph(x).numpy() for x in torch.split(torch.from_numpy(samples), batch)])
        true = compare([next(iter(answer(part, inputs, batch).outputs.values()))], [trained], parent.task)
        if not np.isfinite(true.largest_difference):
            raise UserError(
                f"{out}: not written: its outputs are NaN or infinite: lower quantize.training.learning_rate"
            )
        part.replace(out)
    finally:
        part.unlink(missing_ok=True)
    # What was judged and timed was the static file: what holds of this one is what its float parent hands down, and
    # what of it is in int8.
    handed_down = known_artifact(floating).warnings
    warnings = tuple(said for said in parent.warnings if said in handed_down or said.startswith("its "))
    quantized = {name: value for name, value in parent.options.items() if name != "max_drop"}
    if true.label_agreement < LEAST_AGREEMENT:
        warnings += (
            f"answers otherwise than the simulation that trained it in {1 - true.label_agreement:.0%} of "
            f"{true.samples} compared samples",
        )
    artifact = inspect(
        out,
        rung,
        step="quantize",
        options={**quantized, "aware": True, **options},
        parent=parent.rung,
        parent_sha256=parent.sha256,
        task=parent.task,
        classes=parent.classes,
        preprocessing=parent.preprocessing,
        metrics={
            "parity_largest_difference": check.largest_difference,
            "parity_agreement": check.agreement,
            "simulation_largest_difference": true.largest_difference,
            "simulation_agreement": true.agreement,
        },
        warnings=warnings,
    )
    return save_artifact(out.parent, artifact)
