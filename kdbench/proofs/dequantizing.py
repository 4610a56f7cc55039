"""An int8 file as it would compute if its activations were not rounded: what a backend runs that ignores them."""

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from kdbench.proofs.layers import INT8_KERNELS

if TYPE_CHECKING:
    import onnx

INTEGER_OPERATORS = (*INT8_KERNELS, "DynamicQuantizeLinear")
"""Those of files that don't say what they would be in float; QLinear… of onnxruntime's own domain beside them."""


def dequantized(model: "onnx.ModelProto") -> "onnx.ModelProto | None":
    """A copy of a QDQ model in which activations are clipped to their range, as quantizing does, but not rounded.

    Weights become the float numbers that their integers stand for, or a runtime might still find a way to compute in
    int8. None for a model that quantizes no activations, or otherwise than by pairs of QuantizeLinear and
    DequantizeLinear with one scale a tensor, or a channel of a weight.
    """
    import onnx

    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    graph = copy.graph
    if any(node.op_type in INTEGER_OPERATORS or node.op_type.startswith("QLinear") for node in graph.node):
        return None
    constants = {tensor.name: tensor for tensor in graph.initializer}
    quantized = {
        node.output[0]: node
        for node in graph.node
        if node.op_type == "QuantizeLinear" and node.input[0] not in constants
    }
    nodes: list[onnx.NodeProto] = []
    left_out = 0
    for node in graph.node:
        if node.op_type == "DequantizeLinear" and node.input[0] in quantized:
            span = _range(quantized[node.input[0]], constants)
            if span is None:
                return None
            left_out += 1
            for name, value in zip(("low", "high"), span, strict=True):
                graph.initializer.append(onnx.numpy_helper.from_array(value, f"{node.output[0]}.{name}"))
            nodes += _clipping(quantized[node.input[0]].input[0], node.output[0])
        elif node.op_type == "DequantizeLinear" and node.input[0] in constants:
            weight = _weight(node, constants)
            if weight is None:
                return None
            graph.initializer.append(onnx.numpy_helper.from_array(weight, node.output[0]))
        else:
            nodes.append(node)
    if not left_out:
        return None
    read = {name for node in nodes for name in node.input} | {output.name for output in graph.output}
    del graph.node[:]
    graph.node.extend(node for node in nodes if node.op_type != "QuantizeLinear" or node.output[0] in read)
    return copy


def _weight(node: "onnx.NodeProto", constants: "Mapping[str, onnx.TensorProto]") -> NDArray[np.float32] | None:
    """What a DequantizeLinear of constants gives; None where its scales are of blocks, or not constant."""
    from onnx import numpy_helper

    if any(name not in constants for name in node.input if name):
        return None
    values, scale, *rest = (numpy_helper.to_array(constants[name]) for name in node.input if name)
    zero = rest[0] if rest else np.zeros((), values.dtype)
    attributes = {attribute.name: attribute.i for attribute in node.attribute}
    axis = attributes.get("axis", 1)
    if attributes.get("block_size") or scale.ndim > 1 or values.dtype.kind not in "iu":
        return None
    if scale.size > 1:
        shape = [1] * values.ndim
        shape[axis] = scale.size
        scale, zero = scale.reshape(shape), zero.reshape(shape) if zero.size > 1 else zero.reshape(())
    else:
        scale, zero = scale.reshape(()), zero.reshape(())
    return np.asarray((values.astype(np.int64) - zero.astype(np.int64)) * scale, np.float32)


def _range(
    node: "onnx.NodeProto", constants: "Mapping[str, onnx.TensorProto]"
) -> tuple[NDArray[np.float32], NDArray[np.float32]] | None:
    """The lowest and the highest value that a QuantizeLinear can represent; None where it has several scales, or they
    are not constant."""
    from onnx import numpy_helper

    if any(name not in constants for name in node.input[1:] if name):
        return None
    scale, *rest = (numpy_helper.to_array(constants[name]) for name in node.input[1:] if name)
    zero: NDArray[Any] = rest[0] if rest else np.zeros((), np.uint8)
    if scale.size != 1 or zero.size != 1 or zero.dtype.kind not in "iu":
        return None
    limits, offset, step = np.iinfo(zero.dtype), int(zero.reshape(())), float(scale.reshape(()))
    low, high = (np.asarray((end - offset) * step, np.float32) for end in (limits.min, limits.max))
    return low, high


def _clipping(name: str, result: str) -> "Iterator[onnx.NodeProto]":
    from onnx.helper import make_node

    yield make_node("Max", [name, f"{result}.low"], [f"{result}.raised"])
    yield make_node("Min", [f"{result}.raised", f"{result}.high"], [result])
