"""Convolutions and matrix products with constant weights, and where their channels lie in these."""

from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from kdbench.quantization.preparing import own_copy

if TYPE_CHECKING:
    import onnx


@dataclass(frozen=True)
class Weighted:
    """A Conv or Gemm whose weight, and bias if it has one, are constants that no other node reads.

    Its tensors are those of the model: what is set in them changes it.
    """

    node: "onnx.NodeProto"
    weight: "onnx.TensorProto"
    bias: "onnx.TensorProto | None"

    @property
    def outputs(self) -> int:
        """Channels."""
        return prod(self._by_group(self.values()).shape[:2])

    def values(self) -> NDArray[Any]:
        from onnx import numpy_helper

        values: NDArray[Any] = numpy_helper.to_array(self.weight)
        return values

    def largest(self, of: str) -> NDArray[Any]:
        """The largest absolute weight of each `output` or `input` channel, [channels]."""
        size = np.abs(self._by_group(self.values()))
        size = size.max(axis=tuple(range(3, size.ndim))) if size.ndim > 3 else size
        return np.asarray(size.max(axis=2 if of == "output" else 1)).reshape(-1)

    def scale(self, factors: NDArray[Any], of: str) -> None:
        """Multiplies the weight of each `output` channel, with its bias, or of each `input` channel by its factor."""
        weight = self._by_group(self.values())
        kernel = (1,) * (weight.ndim - 3)
        groups = weight.shape[0]
        shape = (groups, -1, 1, *kernel) if of == "output" else (groups, 1, -1, *kernel)
        put(self.weight, self._from_groups(weight * factors.reshape(shape)))
        if of == "output" and self.bias is not None:
            from onnx import numpy_helper

            bias = numpy_helper.to_array(self.bias)
            put(self.bias, bias * factors.reshape(bias.shape))

    def _by_group(self, weight: NDArray[Any]) -> NDArray[Any]:
        """The weight as [groups, outputs of a group, inputs of a group, *kernel]."""
        if self.node.op_type == "Gemm":
            weight = weight if attribute(self.node, "transB", 0) else weight.T
            return weight.reshape(1, *weight.shape)
        groups = int(attribute(self.node, "group", 1))
        return weight.reshape(groups, -1, *weight.shape[1:])

    def _from_groups(self, weight: NDArray[Any]) -> NDArray[Any]:
        if self.node.op_type == "Gemm":
            flat = weight.reshape(weight.shape[1:])
            return flat if attribute(self.node, "transB", 0) else flat.T
        return weight.reshape(-1, *weight.shape[2:])


def copied(model: "onnx.ModelProto") -> "onnx.ModelProto":
    """A copy in which each Conv and Gemm has a bias of its own: onnxslim joins equal ones, such as zeros."""
    import onnx

    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    tensors = {tensor.name: tensor for tensor in copy.graph.initializer}
    taken: set[str] = set()
    for node in copy.graph.node:
        if node.op_type not in ("Conv", "Gemm") or len(node.input) < 3 or node.input[2] not in tensors:
            continue
        if node.input[2] in taken:
            node.input[2] = own_copy(copy, tensors[node.input[2]])
        taken.add(node.input[2])
    return copy


def weighted(model: "onnx.ModelProto") -> list[Weighted]:
    """Those of the model's graph, in its order."""
    tensors = {tensor.name: tensor for tensor in model.graph.initializer}
    readers: dict[str, int] = {}
    for node in model.graph.node:
        for name in node.input:
            readers[name] = readers.get(name, 0) + 1
    shown = {value.name for value in model.graph.output}
    found = []
    for node in model.graph.node:
        if node.op_type not in ("Conv", "Gemm") or node.domain not in ("", "ai.onnx"):
            continue
        if node.op_type == "Gemm" and not _plain(node):
            continue
        own = [name for name in node.input[1:3] if name]
        if any(name not in tensors or readers[name] > 1 or name in shown for name in own):
            continue
        weight, *bias = (tensors[name] for name in own)
        layer = Weighted(node, weight, bias[0] if bias else None)
        if layer.bias is None or prod(layer.bias.dims) == layer.outputs:
            found.append(layer)
    return found


def _plain(node: "onnx.NodeProto") -> bool:
    """Whether a Gemm is x · W + b and nothing else."""
    factors = (attribute(node, "alpha", 1.0), attribute(node, "beta", 1.0))
    return factors == (1.0, 1.0) and not attribute(node, "transA", 0)


def attribute(node: "onnx.NodeProto", name: str, default: float) -> float:
    """A number among the node's attributes."""
    from onnx import helper

    return next((helper.get_attribute_value(found) for found in node.attribute if found.name == name), default)


def put(tensor: "onnx.TensorProto", values: NDArray[Any]) -> None:
    """Sets a tensor's values, which keeps its name and element type."""
    from onnx import helper, numpy_helper

    kind = helper.tensor_dtype_to_np_dtype(tensor.data_type)
    tensor.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(values, dtype=kind), tensor.name))
