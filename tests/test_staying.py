"""A layer that is left in float computes in float, although onnxruntime would quantize it when it loads the file."""

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import helper

from kdbench.records import Quantize
from kdbench.steps.quantize import quantize
from kdbench.store import write_npz
from tests import models


def mlp(path):
    """Three Gemms, of which two have a Relu behind them."""
    generator = np.random.default_rng(0)
    weights = {f"w{n}": generator.normal(0, 0.4, (16, 16)).astype(np.float32) for n in range(3)}
    nodes = [
        helper.make_node("Gemm", ["x", "w0"], ["a"], name="fc0"),
        helper.make_node("Relu", ["a"], ["b"], name="relu0"),
        helper.make_node("Gemm", ["b", "w1"], ["c"], name="fc1"),
        helper.make_node("Relu", ["c"], ["d"], name="relu1"),
        helper.make_node("Gemm", ["d", "w2"], ["y"], name="fc2"),
    ]
    return models.save(path, nodes, weights, {"x": ["n", 16]}, {"y": ["n", 16]})


def runs(file, disabled=(), **options):
    asked = onnxruntime.SessionOptions()
    for name, value in options.items():
        setattr(asked, name, str(value))
    return onnxruntime.InferenceSession(
        file, asked, providers=["CPUExecutionProvider"], disabled_optimizers=list(disabled)
    )


@pytest.mark.parametrize(
    ("make", "samples", "exclude", "kept"),
    [
        (models.cnn, models.images(32), ("conv1", "relu1"), {"conv1"}),
        (models.cnn, models.images(32), ("conv1",), {"conv1"}),  # its Relu was to be quantized
        (models.cnn, models.images(32), ("conv1", "relu1", "conv2", "relu2"), set()),  # float on one side
        (mlp, np.random.default_rng(1).normal(size=(32, 16)).astype(np.float32), ("fc1", "relu1"), {"fc1"}),
        (models.cnn, models.images(32), (), set()),
    ],
)
@pytest.mark.parametrize("format", ["qdq", "qoperator"])
def test_what_is_left_in_float_computes_in_float(tmp_path, make, samples, exclude, kept, format):
    model = make(tmp_path / "model.onnx")
    write_npz(tmp_path / "pack.npz", {"x_calibration": samples})
    quantize(model, tmp_path / "int8.onnx", tmp_path / "pack.npz", Quantize(exclude=exclude, format=format))
    added = [node.name for node in onnx.load(tmp_path / "int8.onnx").graph.node if node.op_type == "LeakyRelu"]
    assert added == [f"{name}_in_float" for name in sorted(kept)]

    session = runs(tmp_path / "int8.onnx", optimized_model_filepath=tmp_path / "runs.onnx")
    operators = [node.op_type for node in onnx.load(tmp_path / "runs.onnx").graph.node]
    heavy = [name for name in exclude if not name.startswith("relu")]
    assert sum(operators.count(name) for name in ("Conv", "FusedConv", "Gemm", "FusedGemm")) == len(heavy)
    feed = {session.get_inputs()[0].name: samples}
    (found,) = session.run(None, feed)
    (expected,) = runs(tmp_path / "int8.onnx", ["WeightBiasQuantization"]).run(None, feed)
    np.testing.assert_allclose(found, expected, atol=1e-6 * np.abs(expected).max())
