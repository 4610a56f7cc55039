"""Graphs as exporters write them and quantizers don't expect them: functions, shared constants, a new IR version."""

from itertools import pairwise

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from kdbench import UserError, convert, quantize, slim
from kdbench.evaluation import answer
from kdbench.onnxfile import MAX_IR
from kdbench.pipeline.quantizing import fastest_int8
from tests import models


def drawn(*shape, seed=0):
    return (np.random.default_rng(seed).standard_normal(shape) / 4).astype(np.float32)


def with_functions(path):
    """x [n, 16] to as many outputs by four calls of a function: a product, a sum with 0, a bias and a Relu."""
    own = helper.make_function(
        "my",
        "Layer",
        ["x", "w", "b"],
        ["y"],
        [
            helper.make_node("Sub", ["b", "b"], ["zero"]),
            helper.make_node("MatMul", ["x", "w"], ["p"]),
            helper.make_node("Add", ["p", "zero"], ["s"]),
            helper.make_node("Add", ["s", "b"], ["t"]),
            helper.make_node("Relu", ["t"], ["y"]),
        ],
        [helper.make_opsetid("", 17)],
    )
    nodes = [
        helper.make_node("Layer", [source, f"w{number}", f"b{number}"], [result], domain="my", name=f"layer{number}")
        for number, (source, result) in enumerate(pairwise(["x", "h", "i", "j", "y"]))
    ]
    weights = {f"w{number}": drawn(16, 16, seed=number) for number in range(4)}
    weights |= {f"b{number}": drawn(16, seed=number) for number in range(4)}
    graph = helper.make_graph(
        nodes,
        "calls",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 16])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 16])],
        [numpy_helper.from_array(values, name) for name, values in weights.items()],
    )
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("my", 1)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, functions=[own], ir_version=10), path)
    return path


@pytest.fixture
def tied(tmp_path):
    """Numbers of tokens [n, 8] to a score for each of 100 tokens, by their own table once more."""
    nodes = [
        helper.make_node("Gather", ["table", "x"], ["e"], name="embedding"),
        helper.make_node("ReduceMean", ["e"], ["m"], axes=[1], keepdims=0),
        helper.make_node("Gemm", ["m", "w", "b"], ["h"], transB=1, name="middle"),
        helper.make_node("Gemm", ["h", "table", "c"], ["y"], transB=1, name="head"),
    ]
    weights = {"table": drawn(100, 32), "w": drawn(32, 32, seed=1), "b": drawn(32, seed=2), "c": drawn(100, seed=3)}
    graph = helper.make_graph(
        nodes,
        "tied",
        [helper.make_tensor_value_info("x", TensorProto.INT64, ["n", 8])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 100])],
        [numpy_helper.from_array(values, name) for name, values in weights.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=10)
    onnx.save(model, tmp_path / "tied.onnx")
    return tmp_path / "tied.onnx"


@pytest.mark.parametrize("options", [{"format": "qdq"}, {"format": "qoperator"}, None])
def test_what_lies_in_functions_is_quantized_and_slimmed(tmp_path, options):
    path = with_functions(tmp_path / "m.onnx")
    made = quantize(path, tmp_path / "q.onnx", None, options) if options else slim(path, tmp_path / "s.onnx")
    assert sum(made.operators.get(name, 0) for name in ("MatMul", "QLinearMatMul", "Gemm", "QGemm")) == 4
    assert not {"Sub", "Layer"} & made.operators.keys()
    assert made.precision == ("int8" if options else "fp32")
    assert made.metrics["parity_largest_difference"] < 0.1


def test_functions_of_another_opset_are_said_to_prevent_it(tmp_path):
    model = onnx.load(with_functions(tmp_path / "m.onnx"))
    model.functions[0].opset_import[0].version = 16
    onnx.save(model, tmp_path / "m.onnx")
    with pytest.raises(UserError, match="its functions are of another opset than it is: export it without them"):
        quantize(tmp_path / "m.onnx", tmp_path / "q.onnx")


def test_layers_that_are_called_again_and_again_share_one_integer_weight(tmp_path):
    """As the cell of an unrolled recurrent network; of two that read it in two ways each has its own."""
    steps = [helper.make_node("Gemm", [f"h{n}", "w", "b"], [f"h{n + 1}"], transB=1, name=f"step{n}") for n in range(4)]
    last = helper.make_node("Gemm", ["h4", "w"], ["y"], name="last")
    weights = {"w": drawn(16, 16), "b": drawn(16, seed=1), "w.1": drawn(16, 16, seed=2)}
    weights |= {"unlike": drawn(16, seed=3)}
    nodes = [helper.make_node("MatMul", ["x", "w.1"], ["h"]), helper.make_node("Add", ["h", "unlike"], ["h0"]), *steps]
    shapes = {"x": ["n", 16]}, {"h4": ["n", 16]}
    again = models.save(tmp_path / "again.onnx", nodes, weights, *shapes)
    both = models.save(tmp_path / "both.onnx", [*nodes, last], weights, {"x": ["n", 16]}, {"y": ["n", 16]})
    for form in ("qdq", "qoperator"):
        made = quantize(again, tmp_path / "q.onnx", None, {"format": form})
        assert made.metrics["parity_largest_difference"] < 0.1
        assert made.parameters < 1.5 * 2 * 16 * 16
        made = quantize(both, tmp_path / "q.onnx", None, {"format": form})
        assert made.metrics["parity_largest_difference"] < 0.3  # a copy has taken no other's name


@pytest.mark.parametrize("form", ["qdq", "qoperator"])
def test_a_table_that_a_layer_shares_is_split_by_channel_for_each_of_them(tied, tmp_path, form):
    made = quantize(tied, tmp_path / "q.onnx", None, {"format": form})
    assert made.precision == "int8"
    assert made.metrics["parity_largest_difference"] < 0.05


def test_layers_that_share_a_bias_each_scale_it_as_they_need(tmp_path):
    """A convolution that is called twice: its integer bias is in steps of its input's scale, and each has another."""
    nodes = [
        helper.make_node("Conv", ["x", "w", "b"], ["h"], pads=[1] * 4, name="first"),
        helper.make_node("Conv", ["h", "w", "b"], ["g"], pads=[1] * 4, name="second"),
        helper.make_node("GlobalAveragePool", ["g"], ["p"]),
        helper.make_node("Flatten", ["p"], ["y"]),
    ]
    weights = {"w": drawn(4, 4, 3, 3), "b": 3 * drawn(4, seed=1)}
    path = models.save(tmp_path / "m.onnx", nodes, weights, {"x": ["n", 4, 8, 8]}, {"y": ["n", 4]})
    made = quantize(path, tmp_path / "q.onnx", None, {"format": "qoperator"})
    assert made.metrics["parity_largest_difference"] < 0.03


@pytest.mark.parametrize("to", ["bf16", "fp16"])
def test_a_node_that_is_kept_keeps_the_weight_that_another_one_shares(tied, tmp_path, to):
    made = convert(tied, tmp_path / "h.onnx", {"to": to, "keep": ["head"]})
    assert made.options["left_in_float"] == {"Gemm": 1}
    model = onnx.load(tmp_path / "h.onnx")
    (head,) = (node for node in model.graph.node if node.name == "head")
    kept = {tensor.name: tensor for tensor in model.graph.initializer}[head.input[1]]
    assert kept.data_type == TensorProto.FLOAT
    assert np.array_equal(numpy_helper.to_array(kept), drawn(100, 32))
    assert answer(tmp_path / "h.onnx", {"x": np.zeros((2, 8), np.int64)}, 2).outputs["y"].shape == (2, 100)


def test_a_file_that_is_too_new_for_onnxruntime_says_what_makes_it_readable(tmp_path):
    model = onnx.load(models.cnn(tmp_path / "m.onnx", layers=1))
    model.ir_version = MAX_IR + 1
    onnx.save(model, tmp_path / "new.onnx")
    np.savez(tmp_path / "pack.npz", x_calibration=models.images(16))
    said = rf"new\.onnx: of IR version {MAX_IR + 1}, and onnxruntime reads up to {MAX_IR}: 'kdbench slim' makes"
    for make in (
        lambda: quantize(tmp_path / "new.onnx", tmp_path / "q.onnx", tmp_path / "pack.npz"),
        lambda: convert(tmp_path / "new.onnx", tmp_path / "q.onnx", "fp16"),
        lambda: fastest_int8(tmp_path / "new.onnx", tmp_path / "q.onnx", tmp_path / "pack.npz", {"max_drop": 1}),
    ):
        with pytest.raises(UserError, match=said):
            make()
    slim(tmp_path / "new.onnx", tmp_path / "slim.onnx", tmp_path / "pack.npz")
    assert quantize(tmp_path / "slim.onnx", tmp_path / "q.onnx", tmp_path / "pack.npz").precision == "int8"
