"""Which layer of an ONNX file a kernel of the graph that runs comes from, so that two files can be set side by side.

onnxruntime gives kernels names of its own when it fuses nodes: `relu_nchwc`, `node_Conv_138_token_1`,
`Times212/MatMulAddFusion`. What it keeps are the names of weights, of nodes and of tensors, each of which may lead back
to a layer. The quantizers keep node names and add `_quantized` or `_Q4` to those of weights.
"""

import re
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import onnx

ACTIVATIONS = ("Relu", "Clip")
"""That quantizing may take away: what they cut off lies beyond its range."""

WEIGHT_INPUT: Mapping[str, int] = {
    "Conv": 1, "FusedConv": 1, "ConvTranspose": 1, "ConvInteger": 1, "QLinearConv": 3,
    "Gemm": 1, "FusedGemm": 1, "QGemm": 3,
    "MatMul": 1, "FusedMatMul": 1, "MatMulInteger": 1, "MatMulIntegerToFloat": 1, "DynamicQuantizeMatMul": 1,
    "QLinearMatMul": 3,
    "LSTM": 1, "GRU": 1, "RNN": 1, "DynamicQuantizeLSTM": 1, "MatMulNBits": 1,
}  # fmt: skip
"""Operators that do nearly all of a classifier's work, and which of their inputs is the weight."""

INT8_KERNELS = (
    "QLinearConv",
    "QLinearMatMul",
    "QGemm",
    "MatMulInteger",
    "MatMulIntegerToFloat",
    "ConvInteger",
    "DynamicQuantizeMatMul",
    "DynamicQuantizeLSTM",
    "QAttention",
)
INT4_KERNELS = ("MatMulNBits",)
LOW_KERNELS: Mapping[str, tuple[str, ...]] = {"int8": INT8_KERNELS, "int4": INT4_KERNELS}
"""Kernels that multiply in less than float, or weights of less, by the precision of the file."""
FLOAT_KERNELS = ("Conv", "FusedConv", "Gemm", "FusedGemm", "MatMul", "FusedMatMul", "ConvTranspose")
RECURRENT = ("LSTM", "GRU", "RNN")
QUANTIZERS = ("QuantizeLinear", "DequantizeLinear")
DYNAMIC = ("DynamicQuantizeLinear", "DynamicQuantizeMatMul", "DynamicQuantizeLSTM")
"""What finds the range of its input in each run."""
MOVERS = ("Transpose", "ReorderInput", "ReorderOutput")

STEPS = 8
"""How many light nodes may lie between a tensor's name that a kernel has kept and the layer that made it."""

_KERNEL_NAME = re.compile(r"^fused |(_nchwc|_nhwc|_token_\d+|_quant|/\w*Fusion\w*)$")
_QUANTIZED_WEIGHT = re.compile(r"(_quantized|(_DQ)?_Q4)$")
_TENSOR_NAME = re.compile(
    r"(_token_\d+|_quantized|(?:_DQ)?_Q4(?:_output)?|_DequantizeLinear_Output\w*|_QuantizeLinear_Output\w*)$"
)


def layers_of(graph: "onnx.GraphProto") -> "dict[str, onnx.NodeProto]":
    """The layers of a file by name, in order: the weight's where there is a constant one, as it was before
    quantization, else the node's."""
    constants = {tensor.name for tensor in graph.initializer}
    makers = {output: node for node in graph.node for output in node.output}
    return {_layer(node, constants, makers): node for node in graph.node if node.op_type in WEIGHT_INPUT}


class Origins:
    """Finds the layer of a kernel in the file's graph; `running` is the optimized graph, where it is known."""

    def __init__(self, graph: "onnx.GraphProto", running: "onnx.GraphProto | None") -> None:
        self._layers = layers_of(graph)
        self._names = {id(node): name for name, node in self._layers.items()}
        self._nodes = {node.name: node for node in graph.node if node.name}
        self._makers = {output: node for node in graph.node for output in node.output}
        self._running = {node.name: node for node in running.node} if running is not None else {}

    def layer(self, name: str, operator: str) -> str | None:
        """Of the kernel called `name`; None for a light one, and where nothing leads back."""
        if operator not in WEIGHT_INPUT:
            return None
        node = self._running.get(name)
        if node is not None:
            weights = _names(node.input[WEIGHT_INPUT[operator]], _TENSOR_NAME)
            found = next((weight for weight in weights if weight in self._layers), None)
            if found:
                return found
        for candidate in _names(name, _KERNEL_NAME):
            start = self._nodes.get(candidate) or self._makers.get(candidate)
            if start is not None and (found := self._above(start, STEPS)):
                return found
        for output in node.output if node is not None else ():
            for candidate in _names(output, _TENSOR_NAME):
                if candidate in self._makers and (found := self._above(self._makers[candidate], STEPS)):
                    return found
        return None

    def _above(self, node: "onnx.NodeProto", steps: int) -> str | None:
        """The layer of a node, or the nearest one that feeds it by its first inputs."""
        if id(node) in self._names:
            return self._names[id(node)]
        above = next((self._makers[name] for name in node.input if name in self._makers), None)
        return self._above(above, steps - 1) if above is not None and steps else None


def _layer(node: "onnx.NodeProto", constants: set[str], makers: "Mapping[str, onnx.NodeProto]") -> str:
    name: str = node.input[WEIGHT_INPUT[node.op_type]]
    for _ in range(STEPS):
        if name in constants:
            return _QUANTIZED_WEIGHT.sub("", name)
        maker = makers.get(name)
        if maker is None or maker.op_type not in (*QUANTIZERS, "Reshape", "Transpose", "Cast"):
            break
        name = maker.input[0]
    return str(node.name or node.output[0])


def _names(name: str, suffix: re.Pattern[str]) -> Iterator[str]:
    """The name, and what is left when one addition after the other is taken off."""
    yield name
    while (shorter := suffix.sub("", name)) != name:
        yield (name := shorter)


def pair_layers(ours: Mapping[str, str], theirs: Mapping[str, str]) -> list[tuple[str | None, str | None]]:
    """Layers of two files by name; those left over by their order, where as many of one kind are left in both.

    `ours` and `theirs` are operators by layer. In the order of `ours`, those without a partner at the end.
    """
    partner: dict[str, str] = {name: name for name in ours if name in theirs}
    for kind in dict.fromkeys(map(_kind, ours.values())):
        left, right = (
            [name for name, operator in layers.items() if _kind(operator) == kind and name not in partner]
            for layers in (ours, theirs)
        )
        if len(left) == len(right):
            partner |= dict(zip(left, right, strict=True))
    taken = set(partner.values())
    return [*((name, partner.get(name)) for name in ours), *((None, name) for name in theirs if name not in taken)]


def _kind(operator: str) -> str:
    """Convolutions with convolutions, matrix products with matrix products."""
    kinds = ("ConvTranspose", "Conv", "LSTM", "GRU", "RNN")
    return next((kind for kind in kinds if kind in operator), "MatMul")
