"""Layers that are to stay in float, and of themselves would not."""

from collections import defaultdict
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import onnx

SEIZED = ("Conv", "ConvTranspose", "Gemm")
"""Operators that onnxruntime's WeightBiasQuantization knows."""

MOVED = ("Identity", "MaxPool", "Reshape", "Slice", "Squeeze", "Transpose", "Unsqueeze")
"""Operators past which onnxruntime carries QuantizeLinear up and DequantizeLinear down, before it looks again."""

SEEN_THROUGH = ("Relu", "Clip", *MOVED)
"""What may stand between such a layer and its QuantizeLinear."""


def keep_in_float(model: "onnx.ModelProto") -> None:
    """Puts a LeakyRelu of slope 1 behind each layer with float weights that stands between int8 ones.

    Since its version 1.21 onnxruntime quantizes the weights of such a layer itself when it loads a file, with one scale
    for all channels: of a layer that reads what a DequantizeLinear of one scale gives, and whose output goes on to
    nothing but QuantizeLinear; also of a matrix product with its bias added, which becomes a Gemm before. What was left
    in float for its accuracy then runs in int8 of the worst kind. Of that slope the activation leaves every number as
    it is, and no pass sees through it; a convolution takes it in, and the Relu behind it runs by itself.
    """
    from onnx import TensorProto, helper

    graph = model.graph
    weights = {tensor.name for tensor in graph.initializer if tensor.data_type == TensorProto.FLOAT}
    scalars = {tensor.name for tensor in graph.initializer if not tensor.dims or list(tensor.dims) == [1]}
    makers = {output: node for node in graph.node for output in node.output}
    readers = defaultdict(list)
    for node in graph.node:
        for name in node.input:
            readers[name].append(node)

    def was_quantized(name: str) -> bool:
        maker = makers.get(name)
        if maker is not None and maker.op_type in MOVED:
            return was_quantized(maker.input[0])
        return maker is not None and maker.op_type == "DequantizeLinear" and maker.input[1] in scalars

    def is_quantized(name: str) -> bool:
        return bool(readers[name]) and all(
            user.op_type == "QuantizeLinear" or (user.op_type in SEEN_THROUGH and is_quantized(user.output[0]))
            for user in readers[name]
        )

    def would_be_seized(node: "onnx.NodeProto") -> bool:
        if node.op_type == "MatMul":
            sums = readers[node.output[0]]
            return bool(sums) and all(
                user.op_type == "Add" and weights & set(user.input) and is_quantized(user.output[0]) for user in sums
            )
        return node.op_type in SEIZED and is_quantized(node.output[0])

    for place, node in reversed(list(enumerate(graph.node))):
        if node.op_type not in (*SEIZED, "MatMul") or node.input[1] not in weights:
            continue
        if was_quantized(node.input[0]) and would_be_seized(node):
            (output,) = node.output
            node.output[0] = f"{output}_in_float"
            kept = helper.make_node("LeakyRelu", [node.output[0]], [output], name=f"{node.name}_in_float", alpha=1.0)
            graph.node.insert(place + 1, kept)
