"""Small ONNX models made by hand, and what onnxruntime's quantizer makes of them."""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

SIZE = 16


def save(path: Path, nodes: Sequence[onnx.NodeProto], weights: dict[str, np.ndarray], inputs: dict, outputs: dict):
    """A model of opset 17, its inputs and outputs float with these shapes."""

    def values(shapes):
        return [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in shapes.items()]

    tensors = [numpy_helper.from_array(values, name) for name, values in weights.items()]
    graph = helper.make_graph(nodes, "made", values(inputs), values(outputs), tensors)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=10)
    onnx.checker.check_model(model)
    onnx.save(model, path)
    return path


def cnn(path: Path, width: int = 8, layers: int = 3, seed: int = 0) -> Path:
    """[n, 3, 16, 16] to ten logits: convolutions `conv0` … each with a Relu, then a mean and a product with `fc`."""
    generator = np.random.default_rng(seed)
    nodes, weights, x, channels = [], {}, "x", 3
    for i in range(layers):
        spread = np.sqrt(9 * channels / 2)
        weights[f"c{i}"] = (generator.standard_normal((width, channels, 3, 3)) / spread).astype(np.float32)
        nodes += [
            helper.make_node("Conv", [x, f"c{i}"], [f"h{i}"], name=f"conv{i}", pads=[1] * 4),
            helper.make_node("Relu", [f"h{i}"], [f"r{i}"], name=f"relu{i}"),
        ]
        x, channels = f"r{i}", width
    weights["fc"] = generator.standard_normal((channels, 10)).astype(np.float32)
    nodes += [
        helper.make_node("GlobalAveragePool", [x], ["p"], name="pool"),
        helper.make_node("Flatten", ["p"], ["f"], name="flat"),
        helper.make_node("MatMul", ["f", "fc"], ["y"], name="product"),
    ]
    return save(path, nodes, weights, {"x": ["n", 3, SIZE, SIZE]}, {"y": ["n", 10]})


def images(count: int, seed: int = 1) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((count, 3, SIZE, SIZE)).astype(np.float32)


def int8(model: Path, path: Path, **options: Any) -> Path:
    """QDQ with uint8 activations and int8 weights, unless the options say otherwise."""

    class Reader(CalibrationDataReader):
        def __init__(self):
            self.batches = iter([{"x": images(8)}])

        def get_next(self):
            return next(self.batches, None)

    chosen = {"quant_format": QuantFormat.QDQ, "activation_type": QuantType.QUInt8, "weight_type": QuantType.QInt8}
    logging.disable(logging.WARNING)
    try:
        quantize_static(str(model), str(path), Reader(), per_channel=True, **(chosen | options))
    finally:
        logging.disable(logging.NOTSET)
    return path
