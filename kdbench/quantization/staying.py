"""Layers that are to stay in float, and of themselves would not."""

from collections import defaultdict
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import onnx

SEIZED = ("Conv", "ConvTranspose", "Gemm")
"""Operators that onnxruntime's WeightBiasQuantization knows."""

SEEN_THROUGH = ("Relu", "Clip")
"""What may stand between such a layer and its QuantizeLinear."""


def keep_in_float(model: "onnx.ModelProto") -> None:
    """Puts a LeakyRelu of slope 1 behind each layer with float weights that stands between int8 ones.

    Since its version 1.21 onnxruntime quantizes the weights of such a layer itself when it loads a file, with one scale
    for all channels: of a layer that reads what a DequantizeLinear of one scale gives, and goes on to one
    QuantizeLinear, at most by way of Relu or Clip. What was left in float for its accuracy then runs in int8 of the
    worst kind. Of that slope the activation leaves every number as it is, and onnxruntime makes it a part of the layer.
    """
    from onnx import TensorProto, helper

    weights = {tensor.name for tensor in model.graph.initializer if tensor.data_type == TensorProto.FLOAT}
    makers = {output: node for node in model.graph.node for output in node.output}
    readers = defaultdict(list)
    for node in model.graph.node:
        for name in node.input:
            readers[name].append(node)
    scalars = {tensor.name for tensor in model.graph.initializer if not tensor.dims or list(tensor.dims) == [1]}

    def is_quantized(node: "onnx.NodeProto") -> bool:
        while len(users := readers[node.output[0]]) == 1:
            (node,) = users
            if node.op_type not in SEEN_THROUGH:
                return node.op_type == "QuantizeLinear"
        return False

    for place, node in reversed(list(enumerate(model.graph.node))):
        if node.op_type not in SEIZED or node.input[1] not in weights or not is_quantized(node):
            continue
        maker = makers.get(node.input[0])
        if maker is not None and maker.op_type == "DequantizeLinear" and maker.input[1] in scalars:
            (output,) = node.output
            node.output[0] = f"{output}_in_float"
            kept = helper.make_node("LeakyRelu", [node.output[0]], [output], name=f"{node.name}_in_float", alpha=1.0)
            model.graph.node.insert(place + 1, kept)
