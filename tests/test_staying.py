"""A layer that is left in float computes in float, although onnxruntime would quantize it when it loads the file."""

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import helper, numpy_helper

from kdbench.proofs.layers import FLOAT_KERNELS
from kdbench.records import Quantize
from kdbench.steps.quantize import quantize
from kdbench.store import write_npz
from tests import models


def layered(path, second):
    """Three layers, the second of the given nodes `c` to `d`; its weights have one loud channel."""
    generator = np.random.default_rng(0)
    weights = {f"w{n}": generator.normal(0, 0.4, (16, 16)).astype(np.float32) for n in range(3)}
    weights["w1"][:, 0] *= 40
    weights |= {"b1": np.ones(16, np.float32), "shape": np.array([-1, 16]), "wide": np.array([-1, 4, 4])}
    nodes = [
        helper.make_node("Gemm", ["x", "w0"], ["a"], name="fc0"),
        helper.make_node("Relu", ["a"], ["b"], name="relu0"),
        *second,
        helper.make_node("Gemm", ["d", "w2"], ["y"], name="fc2"),
    ]
    return models.save(path, nodes, weights, {"x": ["n", 16]}, {"y": ["n", 16]})


def with_relu(path):
    nodes = [("Gemm", ["b", "w1"], ["c"], "fc1"), ("Relu", ["c"], ["d"], "relu1")]
    return layered(path, [helper.make_node(*node[:3], name=node[3]) for node in nodes])


def reshaped(path):
    nodes = [
        ("Gemm", ["b", "w1"], ["c"], "fc1"),
        ("Relu", ["c"], ["e"], "relu1"),
        ("Reshape", ["e", "wide"], ["f"], "wide1"),
        ("Transpose", ["f"], ["g"], "turn1"),
        ("Reshape", ["g", "shape"], ["d"], "flat1"),
    ]
    return layered(path, [helper.make_node(*node[:3], name=node[3]) for node in nodes])


def with_bias(path):
    nodes = [("MatMul", ["b", "w1"], ["c"], "fc1"), ("Add", ["c", "b1"], ["d"], "add1")]
    return layered(path, [helper.make_node(*node[:3], name=node[3]) for node in nodes])


def pooled(path):
    """A `models.cnn` whose second convolution, with one loud channel, is followed by a pooling."""
    model = onnx.load(models.cnn(path))
    loud = next(tensor for tensor in model.graph.initializer if tensor.name == "c1")
    values = numpy_helper.to_array(loud).copy()
    values[0] *= 40
    loud.CopyFrom(numpy_helper.from_array(values, "c1"))
    place = next(place for place, node in enumerate(model.graph.node) if node.name == "conv2")
    model.graph.node[place].input[0] = "pooled"
    pool = helper.make_node("MaxPool", ["r1"], ["pooled"], name="pool1", kernel_shape=[2, 2], strides=[2, 2])
    model.graph.node.insert(place, pool)
    onnx.save(model, path)
    return path


ROWS = np.random.default_rng(1).normal(size=(32, 16)).astype(np.float32)


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
        (pooled, models.images(32), ("conv1", "relu1"), {"conv1"}),
        (pooled, models.images(32), ("conv1", "relu1", "pool1"), {"conv1"}),
        (with_relu, ROWS, ("fc1", "relu1"), {"fc1"}),
        (reshaped, ROWS, ("fc1", "relu1", "wide1", "turn1", "flat1"), {"fc1"}),
        (with_bias, ROWS, ("fc1", "add1"), {"fc1"}),
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
    heavy = [name for name in exclude if name.startswith(("conv", "fc"))]
    assert sum(operators.count(name) for name in FLOAT_KERNELS) == len(heavy)
    feed = {session.get_inputs()[0].name: samples}
    (found,) = session.run(None, feed)
    (expected,) = runs(tmp_path / "int8.onnx", ["WeightBiasQuantization"]).run(None, feed)
    np.testing.assert_allclose(found, expected, atol=1e-6 * np.abs(expected).max())
