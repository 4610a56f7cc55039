"""A model as it would compute in less than fp32: what feeds its layers is rounded, weights and activations alike.

Backends that run "fp32" in less round the operands of convolutions, matrix products and recurrent nodes, and sum up in
fp32. So do these copies, in nodes that any fp32 runtime executes as they stand, if it is kept from optimizing them.
"""

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from kdbench.onnxfile import opset_of

if TYPE_CHECKING:
    import onnx

SIGNIFICAND_BITS = {"tf32": 11, "fp16": 11, "bf16": 8}
"""With the leading one; fp32 has 24. fp16 also has a smaller range than the others."""

PRECISIONS = (*SIGNIFICAND_BITS, "int8")

OPERANDS = {
    "Conv": (0, 1),
    "ConvTranspose": (0, 1),
    "Gemm": (0, 1),
    "MatMul": (0, 1),
    "LSTM": (0, 1, 2),
    "GRU": (0, 1, 2),
    "RNN": (0, 1, 2),
}
"""Inputs that are multiplied, by operator."""

INT8_OPSET = 11
"""The first that knows DynamicQuantizeLinear."""


def rounded(model: "onnx.ModelProto", precision: str, everywhere: bool = False) -> "onnx.ModelProto | None":
    """A copy whose layers get operands rounded to `precision`; None where nothing in it can be rounded so.

    `everywhere` rounds what any operator reads, and the outputs too: as if no tensor were kept in fp32. int8: weights
    symmetric by output channel, activations uint8 with the range that each batch has. The bodies of loops and branches
    stay as they are, and so does the state that a recurrent node hands on to itself.
    """
    import onnx
    from onnx.inliner import inline_local_functions

    if precision == "int8" and opset_of(model) < INT8_OPSET:
        return None
    copy = onnx.ModelProto()
    copy.CopyFrom(inline_local_functions(model) if model.functions else model)
    graph = copy.graph
    weights = {tensor.name: tensor for tensor in graph.initializer}
    kinds = _kinds(copy)
    done: dict[str, str] = {}
    nodes: list[onnx.NodeProto] = []
    for node in graph.node:
        for place, name in enumerate(node.input):
            operand = place in OPERANDS.get(node.op_type, ())
            kind = kinds.get(name, onnx.TensorProto.FLOAT if operand else onnx.TensorProto.UNDEFINED)
            if not (operand or everywhere) or kind != onnx.TensorProto.FLOAT or not name:
                continue
            if name not in done:
                done[name] = f"{name}.{precision}"
                if precision == "int8" and name in weights:
                    graph.initializer.append(_int8_weight(weights[name], done[name], node))
                else:
                    nodes += _rounding(name, done[name], precision)
            node.input[place] = done[name]
        nodes.append(node)
    if not done:
        return None
    for output in graph.output if everywhere else ():
        if kinds.get(output.name) == onnx.TensorProto.FLOAT:
            _renamed(nodes, output.name, f"{output.name}.exact")
            nodes += _rounding(f"{output.name}.exact", output.name, precision)
    if precision in ("tf32", "bf16"):
        factor = np.float32(2 ** (24 - SIGNIFICAND_BITS[precision]) + 1)
        graph.initializer.append(onnx.numpy_helper.from_array(np.asarray(factor), FACTOR))
    del graph.node[:]
    graph.node.extend(nodes)
    return copy


FACTOR = "kdbench.split"


def _rounding(name: str, result: str, precision: str) -> "Iterator[onnx.NodeProto]":
    """Nodes from a float32 tensor to the same one rounded, in float32."""
    from onnx import TensorProto
    from onnx.helper import make_node

    parts = [f"{result}.{number}" for number in range(3)]
    if precision == "fp16":
        yield make_node("Cast", [name], parts[:1], to=TensorProto.FLOAT16)
        yield make_node("Cast", parts[:1], [result], to=TensorProto.FLOAT)
    elif precision == "int8":
        yield make_node("DynamicQuantizeLinear", [name], parts)
        yield make_node("DequantizeLinear", parts, [result])
    else:
        # Veltkamp's splitting: with c = (2^s + 1)·x, c − (c − x) is x to the nearest with s bits fewer (Dekker 1971).
        yield make_node("Mul", [name, FACTOR], parts[:1])
        yield make_node("Sub", [parts[0], name], parts[1:2])
        yield make_node("Sub", [parts[0], parts[1]], [result])


def _int8_weight(weight: "onnx.TensorProto", result: str, node: "onnx.NodeProto") -> "onnx.TensorProto":
    from onnx import numpy_helper

    values: NDArray[np.float32] = numpy_helper.to_array(weight)
    axis = _output_axis(node, values.ndim)
    along = tuple(other for other in range(values.ndim) if other != axis)
    scale = np.abs(values).max(axis=along, keepdims=True, initial=0) / 127
    scale = np.where(scale > 0, scale, 1)
    return numpy_helper.from_array((np.round(values / scale) * scale).astype(np.float32), result)


def _output_axis(node: "onnx.NodeProto", dimensions: int) -> int:
    """Of a weight, the axis along which the output's channels lie."""
    if node.op_type == "MatMul":
        return dimensions - 1
    if node.op_type == "Gemm":
        return 0 if any(attribute.name == "transB" and attribute.i for attribute in node.attribute) else 1
    return 0 if node.op_type == "Conv" else 1


def _renamed(nodes: "list[onnx.NodeProto]", name: str, new: str) -> None:
    """A tensor, wherever it is made or read."""
    for node in nodes:
        for names in (node.input, node.output):
            for place, found in enumerate(names):
                if found == name:
                    names[place] = new


def _kinds(model: "onnx.ModelProto") -> dict[str, int]:
    """Element types of tensors, as far as they can be inferred."""
    import onnx

    try:
        graph = onnx.shape_inference.infer_shapes(model).graph
    except (onnx.shape_inference.InferenceError, RuntimeError):
        graph = model.graph
    values = (*graph.input, *graph.value_info, *graph.output)
    kinds = {value.name: value.type.tensor_type.elem_type for value in values}
    kinds |= {tensor.name: tensor.data_type for tensor in graph.initializer}
    return {name: kind for name, kind in kinds.items() if kind != onnx.TensorProto.UNDEFINED}
