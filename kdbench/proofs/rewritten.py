"""How far a file made from another one is from it: layer by layer in decibels, and in what its layers run."""

import math
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from kdbench.backends import pick_backend
from kdbench.backends.client import PATIENCE_S, Worker
from kdbench.data.generated import batch_size, in_batches, taken
from kdbench.evaluation import Parity
from kdbench.onnxfile import inputs_of, load_model
from kdbench.proofs.layers import ACTIVATIONS, FLOAT_KERNELS, LOW_KERNELS, RECURRENT, STEPS, WEIGHT_INPUT, layers_of
from kdbench.proofs.widening import computes_in_less, widened
from kdbench.records import Artifact
from kdbench.stats import Interval
from kdbench.store import Arrays

if TYPE_CHECKING:
    import onnx

BATCH = 4
"""Samples of which all layers' outputs are held at a time."""
OUTPUT_SCALE = {"QLinearConv": 6, "QLinearMatMul": 6, "QGemm": 7}
"""Layers of integer operators, and which of their inputs scales what they answer; its zero point is the next one."""
QUANTIZED = "_quantized"
"""What onnxruntime's quantizer adds to the names of their outputs."""
LAYER_DB = "sqnr_db:"
"""How the names of metrics begin that hold the SQNR of a layer."""


@dataclass(frozen=True)
class LayerError:
    """What a layer answers in the child, against what it answers in the parent."""

    layer: str
    operator: str
    """The child's."""
    sqnr_db: float
    """10·log10 of the signal's power by the error's (signal to quantization noise); infinite where they are equal."""


@dataclass(frozen=True)
class Kernels:
    """Layers of the graph that runs, by what they are computed in."""

    low: dict[str, int]
    """In the file's own precision, or of its weights: kernels by operator."""
    floating: dict[str, int]
    casts: int
    nodes: int


@dataclass(frozen=True)
class Proof:
    """What was found of a file and its parent, through one backend."""

    parent: Artifact
    child: Artifact
    backend: str
    batch: int
    threads: int
    samples: str
    """Which ones both have answered: `360 evaluation samples`."""
    parity: Parity
    output_db: float
    """SQNR of the first output."""
    layers: tuple[LayerError, ...]
    """In the child's order."""
    untold: int
    """Layers of the child whose output the parent has under no name."""
    kernels: Kernels | None
    """None where the backend doesn't show the graph that runs."""
    metric: str = ""
    """`accuracy` or `F1`; empty without labels."""
    scores: tuple[float, float] | None = None
    """The parent's and the child's."""
    difference: Interval | None = None
    """Of the scores, paired by sample."""
    mcnemar_p: float | None = None
    latencies_s: tuple[float, float] | None = None
    """Medians over the processes."""
    ratio: Interval | None = None
    """How many times faster the child is."""
    rounds: int = 0
    untimed: str = ""
    """Why there are no latencies."""
    causes: tuple[str, ...] = ()
    """Of a child that isn't faster: what its profile shows."""

    @property
    def slower(self) -> bool:
        return self.ratio is not None and self.ratio.high < 1


def kernels_of(operators: Mapping[str, int], precision: str) -> Kernels | None:
    """Of the operators of the graph that runs; None where there are none."""
    if not operators:
        return None
    low, floats = LOW_KERNELS.get(precision, ()), (*FLOAT_KERNELS, *RECURRENT)
    return Kernels(
        {name: count for name, count in operators.items() if name in low},
        {name: count for name, count in operators.items() if name in floats},
        operators.get("Cast", 0),
        sum(operators.values()),
    )


def sqnr_db(signal: float, noise: float) -> float:
    """Of two powers, or sums of squares."""
    if noise == 0:
        return math.inf
    return 10 * math.log10(signal / noise) if signal > 0 and noise < math.inf else -math.inf


def layer_errors(parent: Path, child: Path, feed: Arrays) -> tuple[list[LayerError], int]:
    """SQNR of each layer's output in the child, all errors of the layers before it included; and how many of its layers
    can't be set beside the parent.

    Both run as they stand in their files, on onnxruntime's CPU provider, on the samples of `feed`; 16-bit floats as
    float32 that is rounded to them. Memory does not grow with the number of samples. Raises WorkerError where either
    can't run.
    """
    ours, theirs = load_model(child), load_model(parent)
    if computes_in_less(ours):  # which this provider would compute in float32, or refuse
        ours = widened(ours, rounding=True) or ours
    ours = _restored(ours)
    shared = _shared_outputs(ours, theirs)
    layers = len(layers_of(ours.graph))
    if not shared:
        return [], layers
    tensors = list(dict.fromkeys((one.theirs, one.ours) for one in shared))
    power = {pair: [0.0, 0.0] for pair in tensors}
    apart: set[tuple[str, str]] = set()
    cpu = pick_backend("cpu"), 1, PATIENCE_S
    with tempfile.TemporaryDirectory(prefix="kdbench-") as scratch, Worker(*cpu) as first, Worker(*cpu) as second:
        for worker, model, side in ((first, theirs, 0), (second, ours, 1)):
            path = Path(scratch, f"{side}.onnx")
            path.write_bytes(showing(model, [pair[side] for pair in tensors]).SerializeToString())
            worker.load(path, plain=True)
        specs, own = inputs_of(theirs), inputs_of(ours)
        for batch in in_batches(specs, feed, batch_size(specs) or BATCH):
            expected, found = first.predict(batch), second.predict(taken(own, batch))
            for pair in tensors:
                a, b = expected[pair[0]].astype(np.float64), found[pair[1]].astype(np.float64)
                if a.shape != b.shape:
                    apart.add(pair)
                    continue
                power[pair][0] += float(np.sum(a**2))
                power[pair][1] += float(np.sum((a - b) ** 2))
    told = [
        LayerError(one.layer, one.operator, sqnr_db(*power[one.theirs, one.ours]))
        for one in shared
        if (one.theirs, one.ours) not in apart
    ]
    return told, layers - len(told)


def as_metrics(layers: Iterable[LayerError]) -> dict[str, float]:
    """As a record keeps them, those that are finite: `sqnr_db:LAYER`."""
    return {f"{LAYER_DB}{one.layer}": one.sqnr_db for one in layers if math.isfinite(one.sqnr_db)}


def of_metrics(metrics: Mapping[str, float]) -> dict[str, float]:
    """SQNR by layer, of a record's metrics."""
    return {name.removeprefix(LAYER_DB): value for name, value in metrics.items() if name.startswith(LAYER_DB)}


@dataclass(frozen=True)
class _Shared:
    """A layer of ours, and the tensors of its output in both files."""

    layer: str
    operator: str
    theirs: str
    ours: str


def _shared_outputs(ours: "onnx.ModelProto", theirs: "onnx.ModelProto") -> list[_Shared]:
    """Layers of ours whose output has the same name in both files.

    A layer that was quantized answers by way of light nodes that make float of it again: casts, scales, a bias. Where
    its output is quantized, that is what it answers: the quantizer also gives a convolution the name of the activation
    behind it, which it takes away where quantizing cuts off the same values.
    """
    known = {name for node in theirs.graph.node for name in node.output if name}
    made = {name for node in ours.graph.node for name in node.output}
    readers, their_readers = _readers(ours), _readers(theirs)
    found = []
    for layer, node in layers_of(ours.graph).items():
        name = next((output for output in node.output if output), "")
        for _ in range(STEPS):
            following = sorted(readers.get(name, []), key=lambda node: node.op_type != "DequantizeLinear")
            if name in known or not following or _is_layer(following[0]):
                break
            name = following[0].output[0]
        if name in known:
            behind = their_readers.get(name, [])
            cut = behind[0].output[0] if len(behind) == 1 and behind[0].op_type in ACTIVATIONS else name
            theirs_name = cut if node.op_type in OUTPUT_SCALE and not made & {cut, cut + QUANTIZED} else name
            found.append(_Shared(layer, node.op_type, theirs_name, _as_read(name, readers)))
    return found


def _readers(model: "onnx.ModelProto") -> "dict[str, list[onnx.NodeProto]]":
    """Nodes by the names that they read."""
    found: dict[str, list[onnx.NodeProto]] = {}
    for node in model.graph.node:
        for name in node.input:
            found.setdefault(name, []).append(node)
    return found


def _restored(model: "onnx.ModelProto") -> "onnx.ModelProto":
    """A copy in which what layers of integer operators answer is made float again, under the name that it had."""
    import onnx

    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    made = {name for node in copy.graph.node for name in node.output}
    for node in list(copy.graph.node):
        place, output = OUTPUT_SCALE.get(node.op_type, 0), node.output[0] if node.output else ""
        name = output.removesuffix(QUANTIZED)
        if place and output.endswith(QUANTIZED) and name not in made and len(node.input) > place:
            scales = node.input[place : place + 2]
            copy.graph.node.append(onnx.helper.make_node("DequantizeLinear", [output, *scales], [name]))
    return copy


def _is_layer(node: "onnx.NodeProto") -> bool:
    """Whether it does more than make float of a layer's answer again."""
    return node.op_type in WEIGHT_INPUT or node.op_type.startswith("QLinear")


def _as_read(name: str, readers: "Mapping[str, list[onnx.NodeProto]]") -> str:
    """The tensor as the next layer gets it: quantized and made float again, where it is."""
    for quantizer in readers.get(name, []):
        if quantizer.op_type == "QuantizeLinear":
            for restored in readers.get(quantizer.output[0], []):
                if restored.op_type == "DequantizeLinear":
                    return str(restored.output[0])
    return name


def showing(model: "onnx.ModelProto", tensors: list[str]) -> "onnx.ModelProto":
    """The model with these tensors among its outputs."""
    import onnx

    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    shown = {value.name for value in copy.graph.output}
    copy.graph.output.extend(onnx.helper.make_empty_tensor_value_info(name) for name in tensors if name not in shown)
    return copy
