"""What int8 costs layer by layer, on real data: the noise at the model's output with one layer in int8 alone.

Rounding errors of different layers are nearly independent of each other, so that their powers at the output add up
(Lin, Talathi and Annapureddy 2016, arXiv 1511.06393): one evaluation a layer tells what each of them has in the whole,
and no combination of layers needs to be tried for an order.
"""

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from kdbench.onnxgraph import macs_by_node
from kdbench.progress import Progress, silent

if TYPE_CHECKING:
    import onnx

SAMPLES = 64
"""On which layers are compared: an order needs fewer than a verdict."""

FOLLOWERS = (
    "Relu", "Clip", "MaxPool", "Reshape", "Flatten", "Transpose", "Squeeze", "Unsqueeze", "Slice", "Identity",
)  # fmt: skip
"""Operators that onnxruntime quantizes only behind a layer in int8, and fuses with it or runs at its scale."""


@dataclass(frozen=True)
class Layer:
    """Nodes that are in int8 or in float together."""

    name: str
    """Of its first node."""
    nodes: tuple[str, ...]
    operator: str
    macs: int | None
    """Of one sample; None where the model's shapes aren't known."""


@dataclass(frozen=True)
class Sensitivity:
    """A layer, and the noise that it makes in int8."""

    layer: Layer
    noise: float
    """Power at the output when it alone is in int8, as a share of the signal's; infinite where that is not finite."""


def sqnr_db(noise: float) -> float:
    """The signal-to-quantization-noise ratio of a share of the signal's power; infinite for no noise at all."""
    if noise == 0:
        return math.inf
    return -math.inf if math.isinf(noise) else -10 * math.log10(noise)


def layers_of(model: "onnx.ModelProto", quantizable: Collection[str]) -> list[Layer]:
    """The quantizable nodes in the model's order, as layers.

    A node joins the layer that it follows where it is one of the FOLLOWERS, and the layer that shares a weight with it:
    onnxruntime rounds a weight for all who read it.
    """
    wanted = set(quantizable)
    nodes = [node for node in model.graph.node if node.name in wanted]
    constants = {tensor.name for tensor in model.graph.initializer if len(tensor.dims) > 1}
    makers = {output: node.name for node in nodes for output in node.output}
    macs = macs_by_node(model)
    first: dict[str, str] = {}
    by_weight: dict[str, str] = {}
    for node in nodes:
        maker = makers.get(node.input[0]) if node.input else None
        shared = [by_weight[name] for name in node.input if name in by_weight]
        if shared:
            first[node.name] = shared[0]
        elif node.op_type in FOLLOWERS and maker in first:
            first[node.name] = first[maker]
        else:
            first[node.name] = node.name
        by_weight |= {name: first[node.name] for name in node.input if name in constants}
    members: dict[str, list[onnx.NodeProto]] = {}
    for node in nodes:
        members.setdefault(first[node.name], []).append(node)
    return [
        Layer(
            name,
            tuple(node.name for node in own),
            own[0].op_type,
            None if macs is None else sum(macs[node.output[0]] for node in own),
        )
        for name, own in members.items()
    ]


def names_of(layers: Collection[Layer]) -> list[str]:
    """Of all nodes of the layers."""
    return [node for layer in layers for node in layer.nodes]


def sensitivities(
    layers: Sequence[Layer],
    quantized: Callable[[Collection[str]], "onnx.ModelProto"],
    run: Callable[["onnx.ModelProto"], NDArray[Any]],
    expected: NDArray[Any],
    progress: Progress = silent,
) -> list[Sensitivity]:
    """The layers with the noise of each, the most sensitive first.

    `quantized` makes the int8 model with these nodes left in float, `run` its first output on the samples, and
    `expected` is that in fp32.
    """
    every = names_of(layers)
    found = []
    for number, layer in enumerate(layers):
        progress("sensitivity", number, len(layers))
        others = [node for node in every if node not in layer.nodes]
        found.append(Sensitivity(layer, noise_share(run(quantized(others)), expected)))
    progress("sensitivity", len(layers), len(layers))
    return sorted(found, key=lambda one: -one.noise)


def noise_share(output: NDArray[Any], expected: NDArray[Any]) -> float:
    """The power of the difference as a share of the expected output's; infinite where either is not finite."""
    ours, theirs = output.astype(np.float64), expected.astype(np.float64)
    power = float(np.square(theirs).sum())
    noise = float(np.square(ours - theirs).sum())
    if not math.isfinite(noise) or not math.isfinite(power):
        return math.inf
    return noise / power if power else (math.inf if noise else 0.0)


def int8_share(layers: Collection[Layer], left_in_float: Collection[str]) -> float | None:
    """Share of the multiply-accumulates that are in int8, by the names of layers that are not; None where unknown.

    Of the quantizable ones alone: what can't be quantized has no part in the choice.
    """
    known = [(layer.name, layer.macs) for layer in layers]
    total = sum(macs or 0 for _, macs in known)
    if any(macs is None for _, macs in known) or not total:
        return None
    return 1 - sum(macs or 0 for name, macs in known if name in left_in_float) / total


def work_of(layers: Collection[Layer]) -> Mapping[str, float]:
    """Multiply-accumulates by layer, for the layers where they are known."""
    return {layer.name: float(layer.macs) for layer in layers if layer.macs is not None}
