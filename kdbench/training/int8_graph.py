"""A static int8 file in QDQ form, read as what of it can be trained, and written again with trained numbers.

Nothing but numbers changes: the nodes, and with them the places of the conversions, stay those of the static file.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from kdbench.store import Arrays

TRAINED: Mapping[str, tuple[int, ...]] = {
    "Conv": (1, 2),
    "ConvTranspose": (1, 2),
    "Gemm": (1, 2),
    "MatMul": (0, 1),
    "LayerNormalization": (1, 2),
}
"""Whose constants are trained, by the places of the inputs; others, such as tables of word vectors, stay."""

INT8, REDUCED = 127, 64
"""The largest integer of weights; reduced where the CPU's additions would overflow."""


@dataclass(frozen=True)
class Weight:
    """A constant that is trained."""

    name: str
    """Of the tensor that nodes read."""
    stored: str
    """Of its initializer."""
    kind: Literal["int8", "int32", "pair", "float32"]
    """How it lies in the file: as integers, `int32` for a bias; `pair`: in float before a pair of conversions;
    `float32`: in float altogether."""
    scale: str = ""
    """The name of its scale's initializer."""
    axis: int | None = None
    """Of its channels; None where it has one scale."""
    limit: int = INT8

    @property
    def rounded(self) -> bool:
        """Whether it is rounded to int8."""
        return self.kind in ("int8", "pair")


@dataclass(frozen=True)
class Grid:
    """What activations that share a scale are rounded to."""

    scale: str
    """The name of its initializer."""
    step: float
    """Its value, as calibrated."""
    zero: int
    lowest: int
    highest: int
    most: float
    """The largest step: where the grid stands for a Clip, its values may not go beyond that."""
    moves: bool = True
    """False where a constant lies on the same grid, which stays as it is."""


@dataclass(frozen=True)
class Node:
    operator: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: Mapping[str, Any]


@dataclass
class Plan:
    """What is computed, in its order, and from what."""

    input: str
    output: str
    nodes: list[Node] = field(default_factory=list)
    """`QuantizeLinear` rounds to the grid of its second input, `DequantizeLinear` then changes nothing."""
    grids: dict[str, Grid] = field(default_factory=dict)
    """By the name of their scale."""
    weights: list[Weight] = field(default_factory=list)
    values: list[NDArray[np.float32]] = field(default_factory=list)
    """Of the weights, in float."""
    constants: Arrays = field(default_factory=dict)

    def add(self, weight: Weight, value: NDArray[Any]) -> None:
        self.weights.append(weight)
        self.values.append(np.array(value, np.float32))


def read(model: onnx.ModelProto, floating: onnx.ModelProto) -> Plan:
    """The plan of a QDQ file whose fp32 parent is `floating`: weights start from the parent's, where these round to its
    own."""
    graph, arrays = model.graph, _arrays(model)
    ours = _arrays(floating)
    first = next(value.name for value in graph.input if value.name not in arrays)
    plan = Plan(first, graph.output[0].name)
    wanted = {name for node in graph.node for name in _trained_inputs(node)}
    behind = {node.input[0]: node.output[0] for node in graph.node if node.op_type == "DequantizeLinear"}
    bounds = {node.output[0]: ours[node.input[2]] for node in floating.graph.node if _clips(node, ours)}
    kept = set()
    for node in graph.node:
        stored = arrays.get(node.input[0]) if node.op_type in ("QuantizeLinear", "DequantizeLinear") else None
        if stored is None and node.op_type == "QuantizeLinear":
            _add_grid(plan, node, arrays, float(bounds.get(node.input[0], np.inf)))
            plan.nodes.append(Node(node.op_type, tuple(node.input[:2]), tuple(node.output), {}))
        elif stored is None:
            attributes = {a.name: helper.get_attribute_value(a) for a in node.attribute}
            inputs = node.input[:1] if node.op_type == "DequantizeLinear" else node.input
            plan.nodes.append(Node(node.op_type, tuple(inputs), tuple(node.output), attributes))
        elif node.op_type == "QuantizeLinear" and behind.get(node.output[0]) in wanted and _symmetric(node, arrays):
            _add_pair(plan, node, arrays)
        elif node.op_type == "DequantizeLinear" and node.output[0] in wanted and _symmetric(node, arrays):
            _add_integers(plan, node, arrays, ours)
        else:
            plan.constants[node.output[0]] = _float_of(node, arrays)
            kept.add(node.input[1])
    plan.grids = {name: replace(grid, moves=name not in kept) for name, grid in plan.grids.items()}
    for name in sorted({name for node in plan.nodes for name in node.inputs} & arrays.keys() - plan.grids.keys()):
        if name in wanted and arrays[name].dtype == np.float32:
            plan.add(Weight(name, name, "float32"), arrays[name])
        else:
            plan.constants[name] = arrays[name].copy()
    return plan


def channel_sizes(plan: Plan) -> list[NDArray[np.float32]]:
    """For each weight the largest value of its output channels, in a shape that meets it; a bias has its weight's."""
    places = {weight.name: number for number, weight in enumerate(plan.weights)}
    sizes = [np.ones((1,) * value.ndim, np.float32) for value in plan.values]
    for node in plan.nodes:
        weight = places.get(node.inputs[1]) if node.operator in ("Conv", "ConvTranspose", "Gemm", "MatMul") else None
        if weight is None:
            continue
        value = plan.values[weight]
        axis = {"Conv": 0, "ConvTranspose": 1, "MatMul": value.ndim - 1}.get(node.operator)
        if axis is None:
            axis = 0 if node.attributes.get("transB") else 1
        others = tuple(place for place in range(value.ndim) if place != axis)
        largest = np.abs(value).max(axis=others, keepdims=True)
        sizes[weight] = np.where(largest > 0, largest, 1).astype(np.float32)
        bias = places.get(node.inputs[2]) if len(node.inputs) > 2 else None
        if bias is not None and plan.values[bias].shape == (sizes[weight].size,):
            sizes[bias] = sizes[weight].reshape(-1)
    return sizes


def written(
    model: onnx.ModelProto,
    plan: Plan,
    values: Sequence[NDArray[np.float32]],
    weight_steps: Sequence[NDArray[np.float32]],
    steps: Mapping[str, float],
) -> onnx.ModelProto:
    """A copy of the file with trained weights and their scales, and with the scales of activations by name."""
    arrays = _arrays(model)
    new: Arrays = {name: np.full_like(arrays[name], step) for name, step in steps.items()}
    makers = {output: node for node in model.graph.node for output in node.output}
    readers = {node.input[2]: node for node in model.graph.node if len(node.input) > 2 and node.op_type in TRAINED}

    def scale_of(tensor: str) -> NDArray[np.float32]:
        name = makers[tensor].input[1]
        return new.get(name, arrays[name])

    scales = {weight.name: np.array(step) for weight, step in zip(plan.weights, weight_steps, strict=True)}
    trained = dict(zip((weight.name for weight in plan.weights), values, strict=True))
    biases = [weight for weight in plan.weights if weight.kind == "int32"]
    for bias in biases:  # has the scale of input times weight, which must let it fit
        node = readers[bias.name]
        smallest = np.abs(trained[bias.name]) / np.float32(2**31 - 256) / scale_of(node.input[0])
        own = scales.get(node.input[1])
        if own is not None:
            scales[node.input[1]] = np.maximum(own, smallest if own.ndim else smallest.max())
    for weight in plan.weights:
        value, step = trained[weight.name], scales[weight.name]
        if weight.rounded:
            new[weight.scale] = step.reshape(arrays[weight.scale].shape)
        if weight.kind == "int8":
            integers = np.rint(value / _along(step, weight.axis, value.ndim))
            new[weight.stored] = integers.clip(-weight.limit, weight.limit).astype(np.int8)
        elif weight.kind != "int32":
            new[weight.stored] = value
    for bias in biases:
        node = readers[bias.name]
        step = scale_of(node.input[0]) * scale_of(node.input[1])
        exact = trained[bias.name].astype(np.float64) / step
        new[bias.stored] = np.rint(exact).clip(-(2**31), 2**31 - 1).astype(np.int32)
        new[bias.scale] = np.broadcast_to(step.reshape(-1), arrays[bias.scale].shape)
    return _replaced(model, new)


def _arrays(model: onnx.ModelProto) -> Arrays:
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}


def _replaced(model: onnx.ModelProto, new: Arrays) -> onnx.ModelProto:
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    for tensor in copy.graph.initializer:
        if tensor.name in new:
            tensor.CopyFrom(numpy_helper.from_array(np.array(new[tensor.name]), tensor.name))
    return copy


def _trained_inputs(node: onnx.NodeProto) -> list[str]:
    return [node.input[place] for place in TRAINED.get(node.op_type, ()) if place < len(node.input)]


def _symmetric(node: onnx.NodeProto, arrays: Arrays) -> bool:
    """Whether a constant's integers are signed, and 0 means 0."""
    zero = arrays[node.input[2]] if len(node.input) > 2 else np.zeros((), arrays[node.input[0]].dtype)
    return zero.dtype in (np.int8, np.int32) and not zero.any()


def _clips(node: onnx.NodeProto, arrays: Arrays) -> bool:
    """Whether it is a Clip to a constant."""
    return node.op_type == "Clip" and len(node.input) > 2 and node.input[2] in arrays


def _add_grid(plan: Plan, node: onnx.NodeProto, arrays: Arrays, bound: float) -> None:
    scale, zero = (arrays[name] for name in node.input[1:3])
    span = np.iinfo(zero.dtype)
    most = bound / max(int(span.max) - int(zero), 1)
    grid = Grid(node.input[1], float(scale), int(zero), int(span.min), int(span.max), most)
    plan.grids.setdefault(grid.scale, grid)


def _add_integers(plan: Plan, node: onnx.NodeProto, arrays: Arrays, floating: Arrays) -> None:
    stored, scale = arrays[node.input[0]], arrays[node.input[1]]
    axis = _axis(node, scale, stored.ndim)
    value = _float_of(node, arrays)
    ours = floating.get(node.input[0].removesuffix("_quantized"))
    # A file whose weights were changed on the way, by equalization or bias correction, is taken at its own word.
    half = 0.501 * _along(scale, axis, stored.ndim)
    if ours is not None and ours.shape == value.shape and (np.abs(ours - value) <= half).all():
        value = ours
    if stored.dtype == np.int32:
        plan.add(Weight(node.output[0], node.input[0], "int32", node.input[1]), value)
    else:
        limit = REDUCED if np.abs(stored.astype(np.int32)).max() <= REDUCED else INT8
        plan.add(Weight(node.output[0], node.input[0], "int8", node.input[1], axis, limit), value)


def _add_pair(plan: Plan, node: onnx.NodeProto, arrays: Arrays) -> None:
    stored, scale = arrays[node.input[0]], arrays[node.input[1]]
    same = next((weight for weight in plan.weights if weight.stored == node.input[0]), None)
    if same:  # a pair for each use
        plan.nodes.append(Node("Identity", (same.name,), tuple(node.output), {}))
        return
    axis = _axis(node, scale, stored.ndim)
    limit = REDUCED if np.abs(np.rint(stored / _along(scale, axis, stored.ndim))).max() <= REDUCED else INT8
    plan.add(Weight(node.output[0], node.input[0], "pair", node.input[1], axis, limit), stored)


def _axis(node: onnx.NodeProto, scale: NDArray[Any], rank: int) -> int | None:
    """Of the channels; None for a single scale."""
    if scale.ndim == 0 or (scale.size == 1 and rank != 1):
        return None
    return int(next((a.i for a in node.attribute if a.name == "axis"), 1)) % rank


def _along(values: NDArray[Any], axis: int | None, rank: int) -> NDArray[Any]:
    """Values of each channel, in the shape that meets tensors of `rank`; a single one as it is."""
    return values.reshape([-1 if place == axis else 1 for place in range(rank)]) if axis is not None else values


def _float_of(node: onnx.NodeProto, arrays: Arrays) -> NDArray[np.float32]:
    """The values behind a conversion of a constant: what integers mean, or a float one as it is."""
    stored, scale = arrays[node.input[0]], arrays[node.input[1]]
    if node.op_type == "QuantizeLinear":
        return stored
    axis = _axis(node, scale, stored.ndim)
    zero = arrays[node.input[2]] if len(node.input) > 2 else np.zeros((), stored.dtype)
    centred = stored.astype(np.int64) - _along(zero, axis, stored.ndim)
    return np.asarray(centred * _along(scale, axis, stored.ndim), np.float32)
