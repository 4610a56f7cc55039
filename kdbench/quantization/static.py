"""Static int8 from given ranges: onnxruntime's quantizer without its calibration, so that it can be called many times.

`prepare` once, then `static_int8` for each choice of nodes.
"""

import contextlib
import functools
import tempfile
from collections import Counter
from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from kdbench.errors import UserError, first_line, nearest
from kdbench.machine import saturates_in_int8
from kdbench.onnxfile import opset_of
from kdbench.proofs.layers import ACTIVATIONS, FLOAT_KERNELS, RECURRENT, WEIGHT_INPUT
from kdbench.quantization.calibration import Ranges, float_tensors
from kdbench.quantization.integers import with_own_weights
from kdbench.quantization.preparing import at_opset, name_nodes
from kdbench.quantization.quiet import quietly, without_torch
from kdbench.quantization.staying import keep_in_float
from kdbench.quantization.weights import copied
from kdbench.records import Quantize

if TYPE_CHECKING:
    import onnx

PER_CHANNEL_OPSET = 13

OLDEST_OPSET = 10
"""That knows QuantizeLinear."""

HEAVY = (*FLOAT_KERNELS, *RECURRENT, "Attention", "Einsum", "MultiHeadAttention")
"""Operators whose staying in float is worth a word."""


def prepare(model: "onnx.ModelProto", path: Path, per_channel: bool = True) -> tuple["onnx.ModelProto", dict[str, Any]]:
    """The model as the quantizer wants it: of an opset that knows scales by channel where it can be converted, with
    flat biases, a name for each node, and shapes as far as they can be inferred; and what is to be recorded of that.

    Raises UserError that begins with `path` where the model is of an opset that can't be quantized.
    """
    import onnx
    from onnxruntime.quantization.quant_utils import add_infer_metadata

    with without_torch():
        from onnxruntime.quantization.shape_inference import quant_pre_process

    name_nodes(model)
    # A weight that is split by channel otherwise for each of its readers, or a bias whose scale is its layer's own.
    model, notes = _upgraded(with_own_weights(copied(model), transposing=False), path, per_channel)
    model = _with_flat_biases(model)
    with tempfile.TemporaryDirectory(prefix="kdbench-") as scratch, quietly():
        prepared = Path(scratch, "prepared.onnx")
        with contextlib.suppress(Exception):  # shapes help, and where they can't be inferred it goes without
            quant_pre_process(model, str(prepared), skip_optimization=True, auto_merge=True)
        if prepared.is_file():
            model = onnx.load(str(prepared))
    with contextlib.suppress(Exception):
        model = onnx.shape_inference.infer_shapes(model)
    add_infer_metadata(model)  # so that the quantizer doesn't infer them again, by way of files
    name_nodes(model)
    return model, notes


def nothing_in(graph: "onnx.ModelProto") -> str:
    """That nothing in it can be quantized, and what to do."""
    kinds = ", ".join(sorted({node.op_type for node in graph.graph.node})[:8])
    apart = "its functions are of another opset than it is: export it without them"
    way_out = apart if graph.functions else "ship it as it is"
    return f"nothing in it can be quantized (operators: {kinds}): {way_out}"


def without_kernels(options: Quantize) -> bool:
    """Whether nothing multiplies the two: signed activations and unsigned weights."""
    return (options.activations, options.weights) == ("int8", "uint8")


def static_int8(
    model: "onnx.ModelProto",
    ranges: Ranges,
    options: Quantize,
    left_in_float: Collection[str] = (),
    name: str = "the model",
) -> "onnx.ModelProto":
    """The int8 model of a prepared one, which stays as it is; `left_in_float` are names of nodes, beside those that the
    options exclude.

    Raises UserError that begins with `name` for what the quantizer refuses.
    """
    import onnx
    from onnxruntime.quantization import QuantType
    from onnxruntime.quantization.calibrate import CalibrationMethod, TensorData, TensorsData
    from onnxruntime.quantization.onnx_quantizer import ONNXQuantizer
    from onnxruntime.quantization.qdq_quantizer import QDQQuantizer
    from onnxruntime.quantization.quant_utils import QuantizationMode

    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    halves = {tensor for tensor, kind in float_tensors(model).items() if kind == onnx.TensorProto.FLOAT16}
    found = {
        tensor: TensorData(
            lowest=np.array(low, np.float16 if tensor in halves else np.float32),
            highest=np.array(high, np.float16 if tensor in halves else np.float32),
        )
        for tensor, (low, high) in (_cut_ranges(model, ranges) | ranges).items()
    }
    types = {"uint8": QuantType.QUInt8, "int8": QuantType.QInt8}
    asked: dict[str, Any] = {
        "per_channel": options.per_channel and opset_of(model) >= PER_CHANNEL_OPSET,
        "reduce_range": saturates_in_int8() if options.reduce_range is None else options.reduce_range,
        "weight_qType": types[options.weights],
        "activation_qType": types[options.activations],
        "tensors_range": TensorsData(CalibrationMethod.MinMax, found),
        "nodes_to_quantize": list(options.nodes),
        "nodes_to_exclude": [*options.exclude, *left_in_float],
        "op_types_to_quantize": _operators(options),
        "extra_options": {
            "ActivationSymmetric": options.symmetric,
            "AddQDQPairToWeight": options.float_weights,
            "DedicatedQDQPair": options.float_weights,
            "QuantizeBias": not options.float_weights,
        },
    }
    try:
        with quietly():  # its advice is to do what has just been done
            if options.format == "qdq":
                quantizer = QDQQuantizer(copy, **asked)
            else:
                quantizer = ONNXQuantizer(copy, mode=QuantizationMode.QLinearOps, static=True, **asked)
            quantizer.quantize_model()
            quantizer.model.topological_sort()
    except Exception as error:  # the quantizer raises what it likes
        raise UserError(f"{name}: onnxruntime can't quantize it: {first_line(error, 200)}") from None
    quantized: onnx.ModelProto = quantizer.model.model
    keep_in_float(quantized)
    return quantized


def quantizable(model: "onnx.ModelProto", operators: Collection[str] = ()) -> list[str]:
    """Names of the nodes of a prepared model that `static_int8` would quantize: of these operators, or of all.

    Found by quantizing it in QDQ format with ranges that don't matter. Activations that go into the node before them
    are not named: they have no say of their own.
    """
    ranges = dict.fromkeys(float_tensors(model), (-1.0, 1.0))
    return quantized_nodes(static_int8(model, ranges, Quantize(operators=tuple(operators))))


def quantized_nodes(quantized: "onnx.ModelProto") -> list[str]:
    """Names, as they were before, of the nodes that compute in int8: integer ones, and those whose inputs, weights
    among them, come from DequantizeLinear."""
    known = _known_operators()
    restored = {output for node in quantized.graph.node if node.op_type == "DequantizeLinear" for output in node.output}

    def is_quantized(node: "onnx.NodeProto") -> bool:
        if node.op_type.startswith(("QLinear", "QGemm")):
            return True
        weight = WEIGHT_INPUT.get(node.op_type)
        whole = weight is None or (len(node.input) > weight and node.input[weight] in restored)
        return node.op_type in known and whole and any(name in restored for name in node.input)

    return [node.name.removesuffix("_quant") for node in quantized.graph.node if is_quantized(node)]


def tensors_to_calibrate(model: "onnx.ModelProto", options: Quantize) -> list[str]:
    """The float tensors of a prepared model that nodes take or make which are to be quantized, without those whose
    ranges are those of other ones."""
    operators = _operators(options)
    chosen = [
        node
        for node in model.graph.node
        if node.op_type in operators
        and node.name not in options.exclude
        and (not options.nodes or node.name in options.nodes)
    ]
    touched = {name for node in chosen for name in (*node.input, *node.output)}
    cut = {name for name, output in _cut_by_activations(model).items() if output in touched}
    activations = {node.input[0] for node in chosen if node.op_type in ACTIVATIONS}
    return [name for name in float_tensors(model) if name in touched and not (name in cut and name in activations)]


def _cut_ranges(model: "onnx.ModelProto", ranges: Ranges) -> Ranges:
    """Of the tensors that go into a Relu or Clip alone."""
    return {name: ranges[output] for name, output in _cut_by_activations(model).items() if output in ranges}


def _cut_by_activations(model: "onnx.ModelProto") -> dict[str, str]:
    """Tensors that go into a Relu or Clip alone, and what comes out: the quantizer gives both the latter's range."""
    readers = Counter(name for node in model.graph.node for name in node.input)
    outputs = {value.name for value in model.graph.output}
    return {
        node.input[0]: node.output[0]
        for node in model.graph.node
        if node.op_type in ACTIVATIONS and readers[node.input[0]] == 1 and node.input[0] not in outputs
    }


def check_options(model: "onnx.ModelProto", options: Quantize, path: Path) -> None:
    """Raises UserError for operators and nodes that the prepared model doesn't have, with the nearest that it has, and
    for types that don't go together."""
    operators = {node.op_type for node in model.graph.node}
    nodes = {node.name for node in model.graph.node}
    for operator in options.operators:
        if operator not in operators:
            raise UserError(f"{path}: has no operator '{operator}': {nearest(operator, operators)}")
    for name in (*options.nodes, *options.exclude):
        if name not in nodes:
            raise UserError(f"{path}: has no node '{name}' once it is slimmed: {nearest(name, nodes)}")
    if without_kernels(options):
        raise UserError("uint8 weights go with uint8 activations only: choose int8 weights")


def left_out(model: "onnx.ModelProto", quantized: "onnx.ModelProto", options: Quantize) -> dict[str, list[str]]:
    """Names of nodes of a prepared model that stay in float, by operator: of those that were asked for, or else of
    those that do much of the work."""
    done, there = set(quantized_nodes(quantized)), {node.name for node in quantized.graph.node}
    found: dict[str, list[str]] = {}
    for node in model.graph.node:
        asked = node.name in options.nodes if options.nodes else node.op_type in (options.operators or HEAVY)
        if asked and node.name not in options.exclude and node.name in there - done:
            found.setdefault(node.op_type, []).append(node.name)
    return found


def _operators(options: Quantize) -> list[str]:
    """Those asked for that onnxruntime can quantize, or all that it can. The quantizer itself would put any operator's
    inputs through eight bits, and let it run in float."""
    known = _known_operators()
    return [operator for operator in known if operator in (options.operators or known)]


@functools.cache
def _known_operators() -> tuple[str, ...]:
    """What onnxruntime quantizes in either format where nothing is said."""
    from onnxruntime.quantization.registry import QDQRegistry, QLinearOpsRegistry

    return tuple(sorted({*QDQRegistry, *QLinearOpsRegistry}))


def _upgraded(model: "onnx.ModelProto", path: Path, per_channel: bool) -> tuple["onnx.ModelProto", dict[str, Any]]:
    """The model at an opset that knows per-channel scales, where it can be converted; what was changed for it."""
    try:
        return at_opset(model, PER_CHANNEL_OPSET, path, "static int8")
    except UserError:
        if opset_of(model) < OLDEST_OPSET:
            raise
        return model, {"per_channel": False} if per_channel else {}


def _with_flat_biases(model: "onnx.ModelProto") -> "onnx.ModelProto":
    """The model with Gemm biases [1, N] as [N], which broadcast alike: onnxruntime's quantizer fails on the former."""
    biases = {node.input[2] for node in model.graph.node if node.op_type == "Gemm" and len(node.input) > 2}
    shared = {name for node in model.graph.node if node.op_type != "Gemm" for name in node.input}
    for tensor in model.graph.initializer:
        if tensor.name in biases - shared and len(tensor.dims) == 2 and tensor.dims[0] == 1:
            del tensor.dims[0]
    return model
