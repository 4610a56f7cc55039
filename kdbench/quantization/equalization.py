"""Cross-layer equalisation: neighbouring layers share their ranges, and compute what they computed before.

Nagel, van Baalen, Blankevoort and Welling 2019 (arXiv 1906.04721), section 4.1: where only a ReLU lies between two
layers, channel i of the first can be divided by s_i and that of the second multiplied by it. With s_i = √(r1_i / r2_i)
both have the same largest weight in each channel, so that one scale for a whole tensor loses less.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from kdbench.quantization.weights import Weighted, copied, weighted

if TYPE_CHECKING:
    import onnx

HOMOGENEOUS = ("Relu", "LeakyRelu", "Identity", "MaxPool", "AveragePool", "GlobalAveragePool", "Flatten")
"""Operators f with f(s·x) = s·f(x) for s > 0, channel by channel; a Clip has a bound that would have to move."""

PASSES = 20
"""A factor wanders along a chain of layers, one step a pass."""


@dataclass(frozen=True)
class Pair:
    """Two layers, and how many inputs of the second each output channel of the first has become."""

    first: Weighted
    second: Weighted
    repeated: int = 1


def equalized(model: "onnx.ModelProto") -> tuple["onnx.ModelProto", list[tuple[str, str]]]:
    """A copy whose pairs of layers are equalised, and the names of these pairs; the model itself where it has none.

    Factors are rounded to powers of two: multiplying by these is exact in floating point, so that the outputs stay
    equal to the last bit (but for numbers near the smallest that fp32 has), at the cost of ranges that differ by up to
    a factor of two within a pair.
    """
    copy = copied(model)
    pairs = _pairs(copy)
    changed: set[int] = set()
    for _ in range(PASSES):
        moved = False
        for number, pair in enumerate(pairs):
            factors = _factors(pair)
            if (factors != 1).any():
                pair.first.scale(1 / factors, "output")
                pair.second.scale(np.repeat(factors, pair.repeated), "input")
                moved = True
                changed.add(number)
        if not moved:
            break
    if not changed:
        return model, []
    return copy, [(pairs[number].first.node.name, pairs[number].second.node.name) for number in sorted(changed)]


def _factors(pair: Pair) -> NDArray[np.float32]:
    """s of each channel, a power of two; 1 for one that either side ignores."""
    ours = pair.first.largest("output").astype(np.float64)
    theirs = pair.second.largest("input").reshape(-1, pair.repeated).max(axis=1).astype(np.float64)
    alive = (ours > 0) & (theirs > 0)
    wanted = np.sqrt(np.divide(ours, theirs, out=np.ones_like(ours), where=alive))
    return np.asarray(np.exp2(np.rint(np.log2(wanted))), dtype=np.float32)


def _pairs(model: "onnx.ModelProto") -> list[Pair]:
    """Layers between which only what is homogeneous lies, and whose tensors nobody else reads."""
    known = {id(found.node): found for found in weighted(model)}
    shown = {value.name for value in model.graph.output}
    readers: dict[str, list[onnx.NodeProto]] = {}
    for node in model.graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node)
    pairs = []
    for found in known.values():
        name = found.node.output[0]
        while name not in shown and len(readers.get(name, [])) == 1:
            (reader,) = readers[name]
            second = known.get(id(reader))
            if second is not None and reader.input[0] == name:
                inputs, outputs = len(second.largest("input")), len(found.largest("output"))
                if inputs % outputs == 0:
                    pairs.append(Pair(found, second, inputs // outputs))
                break
            if reader.op_type not in HOMOGENEOUS or len(reader.output) != 1:
                break
            name = reader.output[0]
    return pairs
