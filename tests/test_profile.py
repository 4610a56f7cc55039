"""Profiles of real models: where the time is said to go, layers side by side, and each known cause where it shows."""

import numpy as np
import onnx
import pytest
from onnx import helper
from onnxruntime.quantization import QuantFormat, QuantType

from kdbench import profile
from kdbench.errors import UserError
from kdbench.proofs.explanations import EXPLANATIONS, explain
from kdbench.proofs.layers import WEIGHT_INPUT, pair_layers
from kdbench.proofs.profile import Profile, profile_one, side_by_side
from kdbench.steps.quantize import quantize
from tests import models
from tests.conftest import kdbench, save_mlp

SECONDS = 0.05


def profiled(path, batch=1) -> Profile:
    return profile_one(path, "cpu", batch, 1, None, {}, SECONDS)


def causes(path, batch=1) -> set[str]:
    found = profiled(path, batch)
    return {cause.name for cause in EXPLANATIONS if cause.found(found) is not None}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("models")


@pytest.fixture(scope="module")
def fp32(folder):
    return models.cnn(folder / "fp32.onnx")


def test_int8_stands_beside_its_parent_layer_by_layer(folder, fp32, monkeypatch, tmp_path):
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    quantize(fp32, folder / "int8.onnx")
    (folder / "other.onnx").write_bytes(fp32.read_bytes()[:-1])  # a file beside them that is no model
    first, second = profile(folder / "int8.onnx", seconds=SECONDS)
    assert (first.artifact.rung, second.artifact.rung) == ("fp32", "int8")
    rows = {row.name: row for row in side_by_side(first, second)}
    assert list(rows) == ["c0", "c1", "c2", "fc", "conversions", "other kernels", "a run"]
    assert {rows[name].first for name in ("c0", "c1", "c2")} == {"Conv"}
    assert {rows[name].second for name in ("c0", "c1", "c2")} == {"QLinearConv"}
    assert (rows["fc"].first, rows["fc"].second) == ("MatMul", "QLinearMatMul")
    for one, time_s in ((first, "first_s"), (second, "second_s")):
        parts = sum(getattr(row, time_s) for row in rows.values() if row.name != "a run")
        assert parts == pytest.approx(one.kernels_s) == pytest.approx(sum(time for *_, time in one.by_operator()))
        assert len(one.slowest()) == min(10, len(one.kernels))
        assert one.placement == {"CPUExecutionProvider": one.artifact.operators}
    assert not list(tmp_path.glob("kdbench-*"))  # the trace is gone


def test_all_layers_of_real_models_are_found(shared_data):
    found = profiled(shared_data / "onnx" / "mnist_8" / "model.onnx")
    assert [kernel.layer for kernel in found.kernels if kernel.operator in WEIGHT_INPUT] == [
        "Parameter5",
        "Parameter87",
        "Parameter193",
    ]


def test_layers_without_a_common_name_are_paired_by_their_order():
    ours = {"a": "Conv", "b": "Conv", "same": "MatMul", "c": "Gemm"}
    theirs = {"x": "QLinearConv", "same": "QGemm", "y": "QLinearConv", "z": "QLinearMatMul"}
    assert pair_layers(ours, theirs) == [("a", "x"), ("b", "y"), ("same", "same"), ("c", "z")]
    assert pair_layers({"a": "Conv"}, {"x": "Conv", "y": "Conv"}) == [("a", None), (None, "x"), (None, "y")]


def test_a_loop_s_kernel_does_not_count_those_of_its_body_twice(tmp_path):
    body = helper.make_graph(
        [helper.make_node("MatMul", ["state", "w"], ["next"]), helper.make_node("Identity", ["go"], ["on"])],
        "body",
        [
            helper.make_tensor_value_info("i", onnx.TensorProto.INT64, []),
            helper.make_tensor_value_info("go", onnx.TensorProto.BOOL, []),
            helper.make_tensor_value_info("state", onnx.TensorProto.FLOAT, ["n", 256]),
        ],
        [
            helper.make_tensor_value_info("on", onnx.TensorProto.BOOL, []),
            helper.make_tensor_value_info("next", onnx.TensorProto.FLOAT, ["n", 256]),
        ],
    )
    loop = helper.make_node("Loop", ["times", "", "x"], ["y"], name="loop", body=body)
    weights = {"w": np.eye(256, dtype=np.float32), "times": np.asarray(20)}
    path = models.save(tmp_path / "loop.onnx", [loop], weights, {"x": ["n", 256]}, {"y": ["n", 256]})
    times = {kernel.operator: kernel.time_s for kernel in profiled(path, batch=64).kernels}
    assert times["MatMul"] > times["Loop"]


def test_unfused_relu_on_symmetric_activations(folder, fp32):
    symmetric = {"activation_type": QuantType.QInt8, "extra_options": {"ActivationSymmetric": True}}
    found = profiled(models.int8(fp32, folder / "symmetric.onnx", **symmetric))
    assert any(s.startswith("3 Relu between int8 run in float") and "--activations uint8" in s for s in explain(found))
    assert "unfused relu" not in causes(models.int8(fp32, folder / "uint8.onnx"))
    assert "unfused relu" not in causes(models.int8(fp32, folder / "s8.onnx", activation_type=QuantType.QInt8))


@pytest.mark.parametrize(("machine", "said"), [("x86_64", True), ("aarch64", False)])
def test_qoperator_on_x86(folder, fp32, monkeypatch, machine, said):
    monkeypatch.setattr("platform.machine", lambda: machine)
    path = models.int8(fp32, folder / "qoperator.onnx", quant_format=QuantFormat.QOperator)
    assert ("QOperator on x86" in causes(path)) is said
    assert "QOperator on x86" not in causes(models.int8(fp32, folder / "qdq.onnx"))


def test_transposes_that_take_much_of_the_time(tmp_path, fp32):
    turns = [
        helper.make_node("Transpose", ["x"], ["a"], perm=[0, 3, 2, 1]),
        helper.make_node("Flatten", ["a"], ["b"]),
        helper.make_node("ReduceMean", ["b"], ["y"], axes=[1]),
    ]
    path = models.save(tmp_path / "turns.onnx", turns, {}, {"x": ["n", 64, 64, 48]}, {"y": ["n", 1]})
    assert any("(Transpose); try `kdbench slim`" in sentence for sentence in explain(profiled(path)))
    assert "transposes" not in causes(fp32, batch=8)


def test_conversions_that_take_much_of_the_time(tmp_path):
    thin = {"c0": np.ones((1, 3, 1, 1), np.float32)}
    nodes = [helper.make_node("Conv", ["x", "c0"], ["h"]), helper.make_node("Tanh", ["h"], ["y"])]
    path = models.save(tmp_path / "thin.onnx", nodes, thin, {"x": ["n", 3, 16, 16]}, {"y": ["n", 1, 16, 16]})
    found = profiled(models.int8(path, tmp_path / "thin-int8.onnx"), batch=64)
    assert any("conversions between float, int8 and memory layouts" in sentence for sentence in explain(found))
    assert "conversions" not in causes(path, batch=64)


def test_little_work_a_run(tmp_path):
    assert "tiny batches" in causes(save_mlp(tmp_path / "free.onnx"))
    assert "tiny batches" not in causes(save_mlp(tmp_path / "fixed.onnx", batch=2))  # no other batch to try


def float_layers(path) -> str:
    return next(sentence for sentence in explain(profiled(path)) if "run in float" in sentence)


def test_layers_left_in_float_are_named_with_the_reason(folder, fp32, tmp_path):
    assert "float in int8" not in causes(models.int8(fp32, folder / "all.onnx"))
    said = float_layers(models.int8(fp32, folder / "product.onnx", op_types_to_quantize=["MatMul"]))
    assert "layers 3 run in float" in said
    assert "c0, c1, c2: not quantized in the file" in said
    assert "--operator Conv" in said
    model = onnx.load(models.int8(fp32, folder / "whole.onnx"))
    last = next(node for node in model.graph.node if node.name == "conv2")
    quantizer = next(node for node in model.graph.node if last.output[0] in node.input)
    restored = next(node for node in model.graph.node if quantizer.output[0] in node.input)
    (pool,) = (node for node in model.graph.node if restored.output[0] in node.input)
    pool.input[0] = last.output[0]
    for node in (quantizer, restored):
        model.graph.node.remove(node)
    onnx.save(model, tmp_path / "open.onnx")
    assert "c2: its output goes on in float to GlobalAveragePool" in float_layers(tmp_path / "open.onnx")


def test_the_command_line(folder, fp32):
    models.int8(fp32, folder / "beside.onnx", quant_format=QuantFormat.QOperator)
    said = kdbench("profile", "fp32.onnx", "beside.onnx", "--batch", "2", cwd=folder).stdout
    assert "fp32 on cpu, 1 thread, batch 2: " in said
    for heading in ("operator ", "slowest nodes ", "layer "):
        assert f"\n  {heading}" in said
    assert "speed-up" in said
    alone = kdbench("profile", "fp32.onnx", cwd=folder).stdout
    assert "speed-up" not in alone
    failed = kdbench("profile", "fp32.onnx", "--backend", "cup", cwd=folder, check=False)
    assert (failed.returncode, "unknown backend 'cup'" in failed.stderr) == (2, True)


def test_a_model_that_cannot_run_says_why(fp32):
    with pytest.raises(UserError, match="no such dimension"):
        profile(fp32, dims={"length": 3})
