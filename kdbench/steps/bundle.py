"""The file that ships: raw samples in, preprocessing and class names inside, the same outputs as before, and more."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from kdbench import __version__
from kdbench.backends.client import WorkerError
from kdbench.data.generated import batch_size, generate
from kdbench.data.pack import EvalPack
from kdbench.errors import UserError
from kdbench.evaluation import Answers, answer, compare
from kdbench.onnxfile import MOST_BYTES, load_model, opset_of, portable, with_metadata
from kdbench.records import Artifact, Embedded, Preprocessing, Task, TensorSpec, placeless
from kdbench.steps.slim import BATCH, SAMPLES, TOLERANCE, derived
from kdbench.store import Arrays, save_artifact, write_atomic

if TYPE_CHECKING:
    import onnx

Samples = NDArray[Any]

PROBABILITIES = "probabilities"
"""The output that is added to scores that are none themselves."""

HALF_TOLERANCE = 5e-3
"""In the place of TOLERANCE for an input of half precision: onnxruntime's CPU provider computes in single precision,
and leaves out the rounding of its input in between."""

LEAST_OPSET = 7
"""The first in which arithmetic broadcasts as numpy does."""

ROUNDING = 0.05
"""How far probabilities may be off 1 that an int8 model has rounded."""

INT8 = ("QLinear", "QGemm", "QAttention", "MatMulInteger", "ConvInteger", "DynamicQuantize")
"""How onnxruntime's operators that compute in int8 begin."""


@dataclass(frozen=True)
class Bundled:
    """What the file that ships takes and gives, and how it was proven."""

    artifact: Artifact
    """With the classes that its outputs mean."""
    input: TensorSpec
    probabilities: str
    """The output that holds them."""
    values: tuple[float, float]
    """Smallest and largest of the samples on which it was compared with what it was made from."""
    samples: int
    generated: bool
    """Whether they were made up."""


def bundle_model(
    model: Path, artifact: Artifact, pack: EvalPack | None, out: Path, known: Embedded | None = None
) -> Bundled:
    """Writes an ONNX file that takes samples as the pack stores them, and answers as `artifact` does preprocessed; its
    record beside it.

    Scores [N, classes] get a softmax beside them, or a sigmoid where a sample has any number of labels, as the output
    `probabilities`, unless they are probabilities already. Task and class names stand in the file's metadata, with what
    else is `known` of the artifact. Raises UserError for what is no classifier of one input, where an output moves by
    more than TOLERANCE of the largest, and where fewer operators would run in int8 than before.
    """
    import onnx

    if len(artifact.inputs) != 1:
        names = ", ".join(spec.name for spec in artifact.inputs)
        raise UserError(f"{model}: has {len(artifact.inputs)} inputs ({names}): only a model of one can be bundled")
    raw, prepared = _samples(model, artifact, pack)
    batch = batch_size(artifact.inputs) or BATCH
    before = _answer(model, {artifact.inputs[0].name: prepared}, batch)
    name, scores = next(iter(before.outputs.items()))
    if scores.ndim != 2 or not np.issubdtype(scores.dtype, np.floating):
        raise UserError(f"{model}: output '{name}' is not one score a class, [N, classes]: it can't be bundled")
    classes = artifact.classes or (pack.classes if pack else ()) or tuple(map(str, range(scores.shape[1])))
    if len(classes) != scores.shape[1]:
        raise UserError(f"{model}: answers with {scores.shape[1]} scores, but has {len(classes)} class names")

    whole = load_model(model)
    preprocessing = pack.preprocessing and (artifact.preprocessing or pack.preprocessing) if pack else None
    spec = _take_raw(whole, artifact.inputs[0], preprocessing, raw, model)
    ready = _are_probabilities(scores, artifact.task)
    probabilities = name if ready else _add_probabilities(whole, name, artifact.task)
    if whole.ByteSize() > MOST_BYTES:
        raise UserError(f"{model}: {whole.ByteSize()} bytes: one ONNX file holds up to 2 GiB: bundle a smaller rung")
    said = {
        "classes": tuple(classes),
        "task": artifact.task,
        "preprocessing": preprocessing and Preprocessing(),
        "probabilities": probabilities,
        "step": "bundle",
        "parent": artifact.rung,
        "parent_sha256": artifact.sha256,
    }
    facts = (known or Embedded(version=__version__, task=artifact.task)).model_copy(update=said)
    write_atomic(out, with_metadata(onnx.load_from_string(portable(whole)), placeless(Embedded, facts)))

    after = _answer(out, {spec.name: raw}, batch)
    check = compare([after.outputs[output] for output in before.outputs], list(before.outputs.values()), artifact.task)
    tolerance = HALF_TOLERANCE if artifact.inputs[0].dtype == "float16" else TOLERANCE
    if not check.largest_difference <= tolerance * max(check.largest_output, 1.0):
        raise UserError(
            f"{model}: not bundled: with its preprocessing inside an output moves by {check.largest_difference:.3g}, "
            f"more than {tolerance:g} of the largest output {check.largest_output:.3g}"
        )
    if _in_int8(after) != _in_int8(before):
        raise UserError(
            f"{model}: not bundled: with its preprocessing inside {_in_int8(after)} operators would run in int8, "
            f"{_in_int8(before)} do without"
        )
    # What the file takes needs no preprocessing any more; the constants of what is inside are no parameters.
    own = {"preprocessing": preprocessing and Preprocessing(), "classes": classes, "parameters": artifact.parameters}
    record = derived(out, None, artifact, "bundle", {"probabilities": probabilities}, check).model_copy(update=own)
    values = float(raw.min()), float(raw.max())
    return Bundled(
        artifact=save_artifact(out.parent, record),
        input=spec,
        probabilities=probabilities,
        values=values,
        samples=check.samples,
        generated=pack is None,
    )


def _samples(model: Path, artifact: Artifact, pack: EvalPack | None) -> tuple[Samples, Samples]:
    """Up to SAMPLES samples, as they lie in the pack, floats as float32, and as the model takes them."""
    (spec,) = artifact.inputs
    if pack is None:
        if artifact.preprocessing is not None:
            raise UserError(
                f"{model}: how samples look before its preprocessing, only they can tell: give --pack PACK.npz"
            )
        made = generate(artifact.inputs, batch_size(artifact.inputs) or BATCH, {})[spec.name]
        return made, made
    stored, feed = pack.x_test, pack.test_inputs
    if stored is None:
        stored, feed = pack.x_calibration, pack.calibration_inputs
    assert stored is not None
    prepared = feed(artifact.inputs, artifact.preprocessing)[spec.name][:SAMPLES]
    if pack.preprocessing is None:
        return prepared, prepared
    raw = stored[:SAMPLES]
    return raw.astype(np.float32) if np.issubdtype(raw.dtype, np.floating) else raw, prepared


def _take_raw(
    model: "onnx.ModelProto", old: TensorSpec, preprocessing: Preprocessing | None, raw: Samples, path: Path
) -> TensorSpec:
    """Puts the preprocessing in front, in the very order of `preprocess.apply`; the input that the model has then."""
    from onnx import helper, numpy_helper

    if preprocessing is None:
        return old
    if opset_of(model) < LEAST_OPSET:
        raise UserError(f"{path}: opset {opset_of(model)}: export it with {LEAST_OPSET} or newer to bundle it")
    axes = (1, -1) + (1,) * (raw.ndim - 2)
    kind = helper.np_dtype_to_tensor_dtype(np.dtype(np.float32))
    given = next(value for value in model.graph.input if value.name == old.name)
    steps: list[tuple[str, Samples | None, int]] = []
    if raw.dtype != np.float32:
        steps.append(("Cast", None, kind))
    if preprocessing.scale != 1.0:
        steps.append(("Mul", np.asarray(preprocessing.scale, np.float32), kind))
    if any(preprocessing.mean):
        steps.append(("Sub", np.asarray(preprocessing.mean, np.float32).reshape(axes), kind))
    if any(std != 1.0 for std in preprocessing.std):
        steps.append(("Div", np.asarray(preprocessing.std, np.float32).reshape(axes), kind))
    if given.type.tensor_type.elem_type != kind:
        steps.append(("Cast", None, given.type.tensor_type.elem_type))
    if not steps:
        return old
    model.ir_version = max(model.ir_version, 4)  # below, every initializer has to be an input too
    name = current = _unused(model, "x")
    for place, (operator, constant, to) in enumerate(steps):
        inputs, output = [current], _unused(model, f"preprocessing_{place}")
        if constant is not None:
            inputs.append(f"{output}_constant")
            model.graph.initializer.append(numpy_helper.from_array(constant, inputs[1]))
        output = old.name if place == len(steps) - 1 else output
        node = helper.make_node(operator, inputs, [output])
        if operator == "Cast":
            node.attribute.append(helper.make_attribute("to", to))
        model.graph.node.insert(place, node)
        current = output
    given.name = name
    given.type.tensor_type.elem_type = helper.np_dtype_to_tensor_dtype(raw.dtype)
    return TensorSpec(name=name, dtype=raw.dtype.name, shape=old.shape)


def _add_probabilities(model: "onnx.ModelProto", scores: str, task: Task) -> str:
    """The name of the output that is added: each class's probability, from the scores [N, classes]."""
    from onnx import helper

    name = _unused(model, PROBABILITIES)
    model.graph.node.append(helper.make_node("Sigmoid" if task == "multi_label" else "Softmax", [scores], [name]))
    added = model.graph.output.add()
    added.CopyFrom(next(value for value in model.graph.output if value.name == scores))
    added.name = name
    return name


def _are_probabilities(scores: Samples, task: Task) -> bool:
    """Whether scores [N, classes] lie from 0 to 1, and add up to 1 where one class holds."""
    if scores.min() < 0 or scores.max() > 1 + ROUNDING:
        return False
    return task == "multi_label" or bool(np.all(np.abs(scores.sum(axis=1) - 1) <= ROUNDING))


def _unused(model: "onnx.ModelProto", name: str) -> str:
    """`name`, or a longer one where something in the model is called so."""
    taken = {tensor.name for tensor in model.graph.initializer} | {value.name for value in model.graph.input}
    taken |= {output for node in model.graph.node for output in node.output}
    while name in taken:
        name += "_"
    return name


def _answer(model: Path, inputs: Arrays, batch: int) -> Answers:
    try:
        return answer(model, inputs, batch)
    except WorkerError as error:
        raise UserError(f"{model}: {error}") from None


def _in_int8(answers: Answers) -> int:
    return sum(count for name, count in answers.optimized_operators.items() if name.startswith(INT8))
