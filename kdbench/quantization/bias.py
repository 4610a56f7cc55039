"""Bias correction: what int8 adds to a layer's outputs on average is taken off its bias.

Nagel et al. 2019 (arXiv 1906.04721), section 4.2 and appendix D, with samples: rounding moves the mean of a channel, as
few weights share one error. The shift is measured, layer by layer from the input on, so that each layer is corrected
behind those that are corrected already.
"""

from collections.abc import Callable, Collection, Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from kdbench.onnxfile import opset_of
from kdbench.progress import Progress, silent
from kdbench.quantization.weights import Weighted, copied, put, weighted

if TYPE_CHECKING:
    import onnx

AXES_AS_INPUT = 18
"""The opset from which on ReduceMean takes its axes as an input."""

Answers = Callable[["onnx.ModelProto"], Iterator[dict[str, NDArray[Any]]]]
"""Runs a model on samples, a batch at a time."""

Shifts = dict[str, NDArray[np.float64]]
"""By the name of a node, what is added to its bias: [channels]."""


def bias_shifts(
    model: "onnx.ModelProto",
    quantized: Callable[["onnx.ModelProto"], "onnx.ModelProto"],
    run: Answers,
    nodes: Collection[str],
    progress: Progress = silent,
) -> Shifts:
    """What makes up for int8 in the biases of an fp32 model that is to be quantized.

    `quantized` makes the int8 model of an fp32 one, in QDQ format; corrected are those of the `nodes` that are
    convolutions or Gemms with a bias of their own or none. Only means are kept of what `run` answers.
    """
    copy = copied(model)
    layers = [found for found in weighted(copy) if found.node.name in nodes]
    expected = _means(model, [found.node.name for found in layers], run)
    shifts: Shifts = {}
    for number, layer in enumerate(layers):
        progress("bias correction", number, len(layers))
        name = layer.node.name
        measured = _means(quantized(copy), [name], run)
        shift = expected[name] - measured.get(name, np.asarray(np.nan))
        if np.isfinite(shift).all():
            shifts[name] = shift
            _add(copy, layer, shift)
    progress("bias correction", len(layers), len(layers))
    return shifts


def bias_corrected(model: "onnx.ModelProto", shifts: Shifts, left_in_float: Collection[str] = ()) -> "onnx.ModelProto":
    """A copy of the fp32 model to be quantized in its place, but for the nodes that stay in float: these need no
    correction."""
    copy = copied(model)
    for layer in weighted(copy):
        if layer.node.name in shifts and layer.node.name not in left_in_float:
            _add(copy, layer, shifts[layer.node.name])
    return copy


def _means(model: "onnx.ModelProto", names: Collection[str], run: Answers) -> dict[str, NDArray[np.float64]]:
    """Means over samples and places of what these nodes put out, [channels] each; without nodes that are not there.

    Each batch counts alike, also a last one that is shorter: the same for every model that is shown the same batches.
    """
    shown, outputs = _with_means(model, names)
    sums: dict[str, NDArray[np.float64]] = {}
    batches = 0
    for answers in run(shown):
        batches += 1
        for name, output in outputs.items():
            values = answers[output].astype(np.float64)
            sums[name] = sums.get(name, np.zeros_like(values)) + values
    return {name: total / batches for name, total in sums.items()}


def _with_means(model: "onnx.ModelProto", names: Collection[str]) -> tuple["onnx.ModelProto", dict[str, str]]:
    """A copy that also puts out the means of these nodes, and the names of those outputs."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    by_input, outputs = opset_of(copy) >= AXES_AS_INPUT, {}
    for node in list(copy.graph.node):
        if node.name not in names:
            continue
        axes = [0] if node.op_type == "Gemm" else [0, *range(2, _rank(copy, node))]
        outputs[node.name] = f"{node.output[0]}.mean"
        if by_input:
            copy.graph.initializer.append(numpy_helper.from_array(np.asarray(axes), f"{node.output[0]}.axes"))
            made = helper.make_node("ReduceMean", [node.output[0], f"{node.output[0]}.axes"], [outputs[node.name]])
        else:
            made = helper.make_node("ReduceMean", [node.output[0]], [outputs[node.name]], axes=axes)
        made.attribute.append(helper.make_attribute("keepdims", 0))
        copy.graph.node.append(made)
        copy.graph.output.append(helper.make_tensor_value_info(outputs[node.name], TensorProto.FLOAT, None))
    return copy, outputs


def _rank(model: "onnx.ModelProto", node: "onnx.NodeProto") -> int:
    """Of a convolution's output, which is that of its weight, an initializer or made of one by DequantizeLinear."""
    makers = {output: maker for maker in model.graph.node for output in maker.output}
    name = node.input[1]
    while name in makers:
        name = makers[name].input[0]
    return next(len(tensor.dims) for tensor in model.graph.initializer if tensor.name == name)


def _add(model: "onnx.ModelProto", layer: Weighted, shift: NDArray[np.float64]) -> None:
    """Adds `shift` [channels] to the layer's bias, which it gets where it has none."""
    from onnx import numpy_helper

    if layer.bias is not None:
        bias = numpy_helper.to_array(layer.bias)
        put(layer.bias, bias + shift.reshape(bias.shape))
        return
    name = f"{layer.weight.name}.bias"
    model.graph.initializer.append(numpy_helper.from_array(shift.astype(np.float32), name))
    del layer.node.input[2:]
    layer.node.input.append(name)
