"""What stands in an ONNX graph: its nodes and tensors, its parameters and multiply-accumulates."""

from collections.abc import Iterator, Mapping
from math import prod
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import onnx

IN_BLOCKS = ("MatMulNBits", "GatherBlockQuantized")
"""Operators of onnxruntime whose weights are quantized in blocks, of 4 bits where they don't say otherwise."""


def count_parameters(model: "onnx.ModelProto") -> int:
    """Elements of floating-point and quantized weights; scales, zero points, shapes and indices are not counted."""
    from onnx import TensorProto

    kinds = {TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16, TensorProto.DOUBLE, TensorProto.INT8,
             TensorProto.UINT8, TensorProto.INT32, TensorProto.INT4, TensorProto.UINT4}  # fmt: skip
    arguments = ("QuantizeLinear", "DequantizeLinear", "Reshape", "Pad", "Slice", "Gather", *IN_BLOCKS)
    total = 0
    for graph in _graphs(model.graph):
        spent = {name for node in graph.node if node.op_type in arguments for name in node.input[1:]}
        packed = [node for node in graph.node if node.op_type == "MatMulNBits"]
        total += sum(prod(a.i for a in node.attribute if a.name in ("K", "N")) for node in packed)
        total += sum(prod(t.dims) for t in _tensors(graph) if t.data_type in kinds and t.name not in spent)
    return total


def count_macs(model: "onnx.ModelProto", sizes: Mapping[str, int] | None = None) -> int | None:
    """Multiply-accumulates of one sample in convolutions, matrix products and recurrent nodes.

    `sizes` are those of symbolic dimensions. None where a shape can't be inferred, or where an operator does such work
    in a way that is not counted here.
    """
    found = _counted(model, sizes or {})
    return None if found is None else sum(found[0].values()) // found[1]


def macs_by_node(model: "onnx.ModelProto") -> dict[str, int] | None:
    """The same by the name of a node's first output; 0 for a node of another kind."""
    found = _counted(model, {})
    return None if found is None else {name: macs // found[1] for name, macs in found[0].items()}


def _counted(model: "onnx.ModelProto", sizes: Mapping[str, int]) -> tuple[dict[str, int], int] | None:
    """Multiply-accumulates of a run by a node's first output, and its number of samples."""
    import onnx

    model = inlined(model)
    if model.functions or any(_counts_otherwise(node) for node in model.graph.node):
        return None
    fixed = onnx.ModelProto()
    fixed.CopyFrom(model)
    weights = {tensor.name for tensor in _tensors(fixed.graph)}
    inputs = [value for value in fixed.graph.input if value.name not in weights]
    for value in inputs:
        dims = value.type.tensor_type.shape.dim
        if dims and not dims[0].dim_value:
            dims[0].dim_value = 1
        for dim in dims:
            if dim.dim_param in sizes:
                dim.dim_value = sizes[dim.dim_param]
    del fixed.graph.value_info[:]
    for value in fixed.graph.output:
        value.type.tensor_type.ClearField("shape")
    try:
        fixed = onnx.shape_inference.infer_shapes(fixed, data_prop=True)
    except (onnx.shape_inference.InferenceError, RuntimeError):
        return None
    shapes: dict[str, tuple[int, ...]] = {tensor.name: tuple(tensor.dims) for tensor in _tensors(fixed.graph)}
    for value in (*fixed.graph.input, *fixed.graph.value_info, *fixed.graph.output):
        tensor = value.type.tensor_type
        if tensor.HasField("shape") and all(dim.dim_value > 0 for dim in tensor.shape.dim):
            shapes.setdefault(value.name, tuple(dim.dim_value for dim in tensor.shape.dim))
    counted: dict[str, int] = {}
    for node in fixed.graph.node:
        macs = _macs(node, shapes)
        if macs is None:
            return None
        counted[next(filter(None, node.output), "")] = macs
    batch = next((shape[0] for value in inputs if (shape := shapes.get(value.name))), 1)
    return counted, max(batch, 1)


def _macs(node: "onnx.NodeProto", shapes: Mapping[str, tuple[int, ...]]) -> int | None:
    if node.op_type not in ("Conv", "ConvTranspose", "Gemm", "MatMul", "LSTM", "GRU", "RNN"):
        return 0
    data, weight, output = (shapes.get(name) for name in (node.input[0], node.input[1], node.output[0]))
    if data is None or weight is None or output is None:
        return None
    match node.op_type:
        case "Conv":
            return prod(output) * prod(weight[1:])
        case "ConvTranspose":
            return prod(data) * prod(weight[1:])
        case "Gemm":
            flipped = any(attribute.name == "transA" and attribute.i for attribute in node.attribute)
            return prod(output) * data[0 if flipped else 1]
        case "LSTM" | "GRU" | "RNN":
            states = shapes.get(node.input[2])
            return None if states is None else prod(data[:2]) * (prod(weight) + prod(states))
        case _:
            return prod(output) * data[-1]


def _counts_otherwise(node: "onnx.NodeProto") -> bool:
    """Whether a node holds a graph of its own, or multiplies matrices under another name."""
    heavy = (
        "Einsum",
        "ConvInteger",
        "MatMulInteger",
        "QLinearConv",
        "QLinearMatMul",
        "Attention",
    )
    return node.op_type in heavy or node.domain == "com.microsoft" or any(True for _ in _subgraphs(node))


def _subgraphs(node: "onnx.NodeProto") -> "Iterator[onnx.GraphProto]":
    for attribute in node.attribute:
        if attribute.HasField("g"):
            yield attribute.g
        yield from attribute.graphs


def _graphs(graph: "onnx.GraphProto") -> "Iterator[onnx.GraphProto]":
    """The graph and all graphs inside its nodes."""
    yield graph
    for node in graph.node:
        for inner in _subgraphs(node):
            yield from _graphs(inner)


def inlined(model: "onnx.ModelProto") -> "onnx.ModelProto":
    """Without functions of its own, whose nodes stand where they are called; those of another opset stay."""
    from onnx.inliner import inline_local_functions

    return inline_local_functions(model) if model.functions else model


def nodes_of(model: "onnx.ModelProto") -> "Iterator[onnx.NodeProto]":
    """Every node, also those of graphs inside nodes, and of functions."""
    for graph in _graphs(model.graph):
        yield from graph.node
    for function in model.functions:
        yield from function.node


def _tensors(graph: "onnx.GraphProto") -> "Iterator[onnx.TensorProto]":
    """Initializers, and the values of Constant nodes under the name of their output."""
    import onnx

    yield from graph.initializer
    for node in graph.node:
        for attribute in node.attribute:
            if node.op_type == "Constant" and attribute.name == "value":
                constant = onnx.TensorProto()
                constant.CopyFrom(attribute.t)
                constant.name = node.output[0]
                yield constant
