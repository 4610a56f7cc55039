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

    Weights stay those that their integers stand for. None for a model that quantizes no activations, or otherwise than
    by pairs of QuantizeLinear and DequantizeLinear with one scale a tensor.
    """
    import onnx

    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    graph = copy.graph
    if any(node.op_type in INTEGER_OPERATORS or node.op_type.startswith("QLinear") for node in graph.node):
        return None
    constants = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in graph.initializer if _small(tensor)}
    weights = {tensor.name for tensor in graph.initializer}
    quantized = {
        node.output[0]: node for node in graph.node if node.op_type == "QuantizeLinear" and node.input[0] not in weights
    }
    nodes: list[onnx.NodeProto] = []
    left_out = 0
    for node in graph.node:
        source = quantized.get(node.input[0]) if node.op_type == "DequantizeLinear" else None
        if source is None:
            nodes.append(node)
            continue
        span = _range(source, constants)
        if span is None:
            return None
        left_out += 1
        for name, value in zip(("low", "high"), span, strict=True):
            graph.initializer.append(onnx.numpy_helper.from_array(value, f"{node.output[0]}.{name}"))
        nodes += _clipping(source.input[0], node.output[0])
    if not left_out:
        return None
    read = {name for node in nodes for name in node.input} | {output.name for output in graph.output}
    del graph.node[:]
    graph.node.extend(node for node in nodes if node.op_type != "QuantizeLinear" or node.output[0] in read)
    return copy


def _small(tensor: "onnx.TensorProto") -> bool:
    """Whether it may be a scale or a zero point."""
    return not tensor.dims or list(tensor.dims) == [1]


def _range(
    node: "onnx.NodeProto", constants: Mapping[str, NDArray[Any]]
) -> tuple[NDArray[np.float32], NDArray[np.float32]] | None:
    """The lowest and the highest value that a QuantizeLinear can represent; None where they are not constant."""
    scale = constants.get(node.input[1])
    zero = constants.get(node.input[2]) if len(node.input) > 2 else np.zeros((), np.uint8)
    if scale is None or zero is None or zero.dtype.kind not in "iu":
        return None
    limits, offset, step = np.iinfo(zero.dtype), int(zero.reshape(())), float(scale.reshape(()))
    low, high = (np.asarray((end - offset) * step, np.float32) for end in (limits.min, limits.max))
    return low, high


def _clipping(name: str, result: str) -> "Iterator[onnx.NodeProto]":
    from onnx.helper import make_node

    yield make_node("Max", [name, f"{result}.low"], [f"{result}.raised"])
    yield make_node("Min", [f"{result}.raised", f"{result}.high"], [result])
