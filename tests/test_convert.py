"""Other precisions: what each makes of real models, what of it really runs, and what can't be converted, named."""

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from kdbench import UserError, convert, prove
from kdbench.backends import pick_backend
from kdbench.backends.client import Worker
from kdbench.evaluation import answer, parity
from kdbench.models import build
from kdbench.onnxfile import inspect, load_model, operators_of
from kdbench.proofs.layers import LOW_KERNELS, layers_of
from kdbench.proofs.precision import error
from kdbench.proofs.rewritten import layer_errors, sqnr_db
from kdbench.proofs.widening import widened
from kdbench.records import Artifact, Convert, Preprocessing, placeless
from kdbench.steps.export import export
from kdbench.training import weights
from tests import models
from tests.conftest import kdbench, save_mlp

LENGTH, VOCABULARY = 12, 90


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("precisions")


def exported(folder, name, **options):
    """An untrained text model, its classifier scaled so that answers are far apart."""
    shape, options = (LENGTH,), {"vocabulary": VOCABULARY, **options}
    torch.manual_seed(0)
    model = build(name, options, shape, 3).eval()
    with torch.no_grad():
        model.head.weight.mul_(20)
    record = weights.Trained(
        model=name, options=options, input_shape=shape, input_dtype="int64", classes=tuple("abc"),
        preprocessing=Preprocessing(), fingerprint="", epoch=0,
    )  # fmt: skip
    weights.save(folder / f"{name}.safetensors", model.state_dict(), record)
    export(folder / f"{name}.safetensors", folder / f"{name}.onnx")
    return folder / f"{name}.onnx"


@pytest.fixture(scope="module")
def bert(folder):
    return exported(folder, "bert", layers=1, heads=2, width=32)


@pytest.fixture(scope="module")
def lstm(folder):
    return exported(folder, "lstm", embedding=16, width=24)


@pytest.fixture(scope="module")
def gru(folder):
    generator = np.random.default_rng(0)
    shapes = {"w": (1, 36, 8), "r": (1, 36, 12), "head": (12, 3)}
    tensors = {name: generator.standard_normal(shape).astype(np.float32) / 4 for name, shape in shapes.items()}
    nodes = [
        helper.make_node("Transpose", ["x"], ["steps"], perm=[1, 0, 2]),
        helper.make_node("GRU", ["steps", "w", "r"], ["", "state"], name="gru", hidden_size=12),
        helper.make_node("Squeeze", ["state", "axis"], ["last"]),
        helper.make_node("MatMul", ["last", "head"], ["y"], name="product"),
    ]
    shapes = {"x": ["n", 6, 8]}, {"y": ["n", 3]}
    return models.save(folder / "gru.onnx", nodes, {**tensors, "axis": np.asarray([0])}, *shapes)


@pytest.fixture(scope="module")
def cnn(folder):
    return models.cnn(folder / "cnn.onnx")


@pytest.fixture(scope="module")
def pack(folder):
    tokens = np.random.default_rng(0).integers(1, VOCABULARY, (48, LENGTH))
    np.savez(folder / "pack.npz", x_test=tokens[:32], x_calibration=tokens[32:])
    return folder / "pack.npz"


def running(path, folder):
    """Operators of the graph that onnxruntime's CPU provider runs."""
    with Worker(pick_backend("cpu"), 1) as worker:
        worker.load(path, optimized=folder / "running.onnx")
    return operators_of(folder / "running.onnx")


@pytest.fixture(scope="module")
def made(bert, pack, folder):
    """The transformer in each precision: path and record."""
    paths = {to: folder / f"{to}.onnx" for to in ("dynamic", "fp16", "bf16", "int4")}
    return {to: (path, convert(bert, path, to, pack)) for to, path in paths.items()}


def kinds(path):
    return {tensor.name: tensor.data_type for tensor in load_model(path).graph.initializer}


@pytest.mark.parametrize(("to", "least"), [("dynamic", 25), ("fp16", 50), ("bf16", 35), ("int4", 12)])
def test_a_transformer_keeps_its_outputs_in_every_precision(bert, pack, made, to, least):
    path, found = made[to]
    assert found.precision == {"dynamic": "int8"}.get(to, to)
    assert (found.step, found.parent, found.options["to"]) == ("convert", "bert", to)
    assert found.parameters == pytest.approx(inspect(bert).parameters, rel=0.01)  # less a constant that was there twice
    assert found.size_bytes < 0.75 * inspect(bert).size_bytes
    assert [spec.dtype for spec in (*found.inputs, *found.outputs)] == ["int64", "float32"]
    tokens = np.load(pack)["x_test"]
    a, b = (next(iter(answer(model, {"input": tokens}, 8).outputs.values())) for model in (bert, path))
    assert sqnr_db(float(np.sum(a**2)), float(np.sum((a - b) ** 2))) > least
    assert not np.array_equal(a, b)


def test_dynamic_int8_of_a_transformer_runs_in_int8(bert, made, tmp_path):
    ran = running(made["dynamic"][0], tmp_path)
    weighted = [node for node in load_model(bert).graph.node if node.op_type in ("Gemm", "MatMul")]
    constants = {tensor.name for tensor in load_model(bert).graph.initializer}
    of_weights = sum(node.input[1] in constants for node in weighted)
    assert sum(ran.get(name, 0) for name in LOW_KERNELS["int8"]) == of_weights == 8
    assert ran["MatMul"] + ran.get("FusedMatMul", 0) == len(weighted) - of_weights  # of two activations
    assert kinds(made["dynamic"][0])["tokens.weight_quantized"] == TensorProto.UINT8


def test_a_node_that_is_kept_stays_in_float(bert, pack, tmp_path):
    head = next(n.name for n in load_model(bert).graph.node if "head.weight" in n.input)
    made = convert(bert, tmp_path / "out.onnx", Convert(to="dynamic", keep=(head, "Gather")), pack)
    assert kinds(tmp_path / "out.onnx")["head.weight"] == TensorProto.FLOAT
    assert sum(made.operators.get(name, 0) for name in ("MatMulInteger",)) == 7
    assert made.options["left_in_float"]["Gemm"] == 1


def test_lstms_run_in_int8_and_grus_are_said_to_stay_in_float(lstm, gru, pack, tmp_path):
    made = convert(lstm, tmp_path / "lstm.onnx", "dynamic", pack)
    assert (made.precision, made.warnings) == ("int8", ())
    assert running(tmp_path / "lstm.onnx", tmp_path)["DynamicQuantizeLSTM"] == 1
    assert parity(tmp_path / "lstm.onnx", lstm, pack=pack).agreement > 0.9
    made = convert(gru, tmp_path / "gru.onnx", "dynamic")
    assert made.warnings == ("its GRU layers stay in float: dynamic int8 can't hold them",)
    assert running(tmp_path / "gru.onnx", tmp_path)["GRU"] == 1


def test_convolutions_are_dynamic_only_where_they_are_named(cnn, tmp_path):
    made = convert(cnn, tmp_path / "product.onnx", "dynamic")
    assert made.operators["Conv"] == 3
    assert "--operator Conv" in made.warnings[0]
    made = convert(cnn, tmp_path / "all.onnx", Convert(to="dynamic", operators=("Conv", "MatMul")))
    assert (made.operators["ConvInteger"], made.operators["MatMulInteger"], made.warnings) == (3, 1, ())


@pytest.mark.parametrize("form", ["operator", "qdq"])
def test_int4_weights_of_a_block_differ_by_half_a_step_at_most(tmp_path, form):
    generator = np.random.default_rng(0)
    weight = generator.standard_normal((64, 6)).astype(np.float32)
    nodes = [helper.make_node("Gemm", ["x", "w", "b"], ["y"], name="head", transB=1)]
    parent = models.save(
        tmp_path / "m.onnx",
        nodes,
        {"w": weight.T.copy(), "b": np.ones(6, np.float32)},
        {"x": ["n", 64]},
        {"y": ["n", 6]},
    )
    made = convert(parent, tmp_path / "int4.onnx", Convert(to="int4", block_size=16, form=form))
    assert (made.precision, made.parameters) == ("int4", 64 * 6 + 6)
    assert ("MatMulNBits" in made.operators) is (form == "operator")
    assert running(tmp_path / "int4.onnx", tmp_path)["MatMulNBits"] == 1
    x = np.eye(64, dtype=np.float32)
    found = answer(tmp_path / "int4.onnx", {"x": x}, 8).outputs["y"] - 1
    blocks = weight.reshape(4, 16, 6)
    step = (np.maximum(blocks.max(axis=1), 0) - np.minimum(blocks.min(axis=1), 0)) / 15
    assert (
        np.abs(found - weight).reshape(4, 16, 6) <= 0.51 * step[:, None]
    ).mean() > 0.95  # zero points are rounded too
    assert (np.abs(found - weight).reshape(4, 16, 6) <= 1.01 * step[:, None]).all()


def test_bf16_weights_are_rounded_to_the_nearest(tmp_path, cnn):
    made = convert(cnn, tmp_path / "bf16.onnx", "bf16")
    assert made.precision == "bf16"
    assert made.size_bytes < 0.7 * inspect(cnn).size_bytes
    wide = {tensor.name: numpy_helper.to_array(tensor) for tensor in load_model(cnn).graph.initializer}
    for tensor in load_model(tmp_path / "bf16.onnx").graph.initializer:
        if tensor.data_type == TensorProto.BFLOAT16:
            kept = numpy_helper.to_array(tensor).astype(np.float32)
            nearest = torch.from_numpy(wide.pop(tensor.name).copy()).bfloat16().float().numpy()
            np.testing.assert_array_equal(kept, nearest)
    assert wide == {}


def test_bf16_products_are_those_of_another_implementation(tmp_path):
    generator = np.random.default_rng(0)
    w, b = generator.standard_normal((16, 5)).astype(np.float32), np.ones(5, np.float32)
    x = generator.standard_normal((7, 16)).astype(np.float32)
    nodes = [helper.make_node("Gemm", ["x", "w", "b"], ["h"], name="head"), helper.make_node("Tanh", ["h"], ["y"])]
    parent = models.save(tmp_path / "m.onnx", nodes, {"w": w, "b": b}, {"x": ["n", 16]}, {"y": ["n", 5]})
    made = convert(parent, tmp_path / "bf16.onnx", Convert(to="bf16", activations="bf16"))
    onnx.save(widened(load_model(tmp_path / "bf16.onnx"), rounding=True), tmp_path / "e.onnx")
    with torch.no_grad():
        short = [torch.from_numpy(each).bfloat16() for each in (x, w, b)]
        expected = (short[0].float() @ short[1].float() + short[2].float()).bfloat16().float().tanh().numpy()
    found = answer(tmp_path / "e.onnx", {"x": x}, 7).outputs["y"]
    off = error([found], [expected])
    assert off.rms < 1e-3  # a sum at the edge of two numbers may be rounded to either
    assert error([answer(parent, {"x": x}, 7).outputs["y"]], [expected]).rms > 1e-3
    assert made.metrics["parity_largest_difference"] > 0
    with pytest.raises(UserError, match=r"bf16\.onnx against .*Gemm"):
        prove(parent, tmp_path / "bf16.onnx")


def test_fp16_clamps_what_it_cannot_hold_and_says_so(tmp_path):
    weight = np.eye(4, dtype=np.float32)
    weight[0, 0] = 1e6
    nodes = [helper.make_node("MatMul", ["x", "w"], ["h"], name="product"), helper.make_node("Tanh", ["h"], ["y"])]
    parent = models.save(tmp_path / "m.onnx", nodes, {"w": weight}, {"x": ["n", 4]}, {"y": ["n", 4]})
    with pytest.raises(UserError, match=r"all of it leaves the range of fp16 on the compared samples"):
        convert(parent, tmp_path / "fp16.onnx", "fp16")
    np.savez(tmp_path / "pack.npz", x_calibration=np.full((3, 4), 1e-3, np.float32))
    made = convert(parent, tmp_path / "fp16.onnx", "fp16", tmp_path / "pack.npz")
    assert any("±65504, the range of fp16, were clamped: 1 of “w”" in warning for warning in made.warnings)
    kept = {t.name: numpy_helper.to_array(t) for t in load_model(tmp_path / "fp16.onnx").graph.initializer}
    assert kept["w"].max() == 65504
    with pytest.raises(UserError, match="nothing in it can be converted to fp16"):
        convert(parent, tmp_path / "none.onnx", Convert(to="fp16", keep=("product", "Tanh")))


def test_what_would_leave_the_range_of_fp16_stays_in_float(tmp_path):
    """A CPU that computes fp16 in float32 would not show it."""
    weight = np.full((4, 4), 300, np.float32)
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["h"], name="product"),
        helper.make_node("Mul", ["h", "h"], ["s"], name="/in/square"),
        helper.make_node("Relu", ["s"], ["r"], name="relu"),
        helper.make_node("Sqrt", ["r"], ["q"], name="root"),
        helper.make_node("Tanh", ["q"], ["y"], name="tanh"),
    ]
    parent = models.save(tmp_path / "m.onnx", nodes, {"w": weight}, {"x": ["n", 4]}, {"y": ["n", 4]})
    made = convert(parent, tmp_path / "fp16.onnx", "fp16")
    assert set(made.options["keep"]) == {"/in/square", "relu", "root"}
    assert "the range of fp16, ±65504, on the compared samples: “/in/square”, “relu”, “root”" in made.warnings[0]
    assert placeless(Artifact, made).warnings == made.warnings  # as it is packed, published and on a card
    x = {"x": models.images(5)[:, 0, 0, :4]}
    onnx.save(widened(load_model(tmp_path / "fp16.onnx"), rounding=True), tmp_path / "rounded.onnx")
    found, expected = (answer(path, x, 5).outputs["y"] for path in (tmp_path / "rounded.onnx", parent))
    np.testing.assert_allclose(found, expected, atol=1e-2)


def test_operators_without_fp16_stay_in_float(tmp_path):
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["h"], name="product"),
        helper.make_node("CumSum", ["h", "axis"], ["y"], name="sum"),
    ]
    tensors = {"w": np.eye(4, dtype=np.float32), "axis": np.asarray(1)}
    parent = models.save(tmp_path / "m.onnx", nodes, tensors, {"x": ["n", 4]}, {"y": ["n", 4]})
    made = convert(parent, tmp_path / "fp16.onnx", "fp16")
    assert made.options["left_in_float"] == {"CumSum": 1}
    x = np.asarray([[1, 2, 3, 4]], np.float32)
    np.testing.assert_array_equal(answer(tmp_path / "fp16.onnx", {"x": x}, 1).outputs["y"], [[1, 3, 6, 10]])


def test_magika_in_every_precision(shared_data, tmp_path):
    path = next((shared_data / "onnx" / "magika").rglob("*.onnx"))
    recorded = np.load(shared_data / "onnx" / "magika" / "standard_v3_3-reference.npz")
    np.savez(tmp_path / "pack.npz", x_calibration=recorded["bytes"].astype(np.int32)[:8])
    for to in ("dynamic", "fp16", "int4"):
        made = convert(path, tmp_path / f"{to}.onnx", to, tmp_path / "pack.npz")
        assert made.metrics["parity_agreement"] >= 0.75, to  # of eight; without what is kept in float none
        assert made.size_bytes < inspect(path).size_bytes
        assert any("LayerNorm_1/Sum_1" in name for name in made.options["keep"]) is (to == "fp16")  # of squares


# --- what can't be converted ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"to": "dynamic", "operators": ["Matmul"]}, r"has no operator 'Matmul': .*Gemm"),
        ({"to": "dynamic", "keep": ["frist"]}, r"has no node or operator 'frist': did you mean 'first'\?"),
        (
            {"to": "dynamic", "operators": ["Relu"]},
            r"nothing in it can be converted to dynamic \(operators: Gemm, Relu",
        ),
        ({"to": "int4", "operators": ["Relu"]}, r"nothing in it can be converted to int4"),
        ({"to": "fp16", "activations": "int8"}, r"--activations int8: is for --to int4: fp16 has float"),
        ({"to": "dynamic", "activations": "bf16"}, r"--activations bf16: is for --to bf16: dynamic has float"),
    ],
)
def test_what_is_not_there_is_named(tmp_path, options, said):
    model = onnx.load(save_mlp(tmp_path / "m.onnx"))
    model.graph.node[0].name = "first"
    onnx.save(model, tmp_path / "m.onnx")
    with pytest.raises(UserError, match=said):
        convert(
            tmp_path / "m.onnx",
            tmp_path / "out.onnx",
            Convert(**{k: tuple(v) if isinstance(v, list) else v for k, v in options.items()}),
        )
    assert {path.name for path in tmp_path.iterdir()} == {"m.onnx"}


def test_what_is_not_fp32_is_refused(tmp_path, small_model):
    for to, state in (("fp16", "in half precision"), ("int4", "quantized already"), ("dynamic", "quantized already")):
        convert(small_model, tmp_path / f"{to}.onnx", to)
        with pytest.raises(UserError, match=f"is {state}: give its fp32 parent"):
            convert(tmp_path / f"{to}.onnx", tmp_path / "again.onnx", "bf16")
    with pytest.raises(UserError, match=r"unknown precision 'fp61': did you mean 'fp16'\?"):
        convert(small_model, tmp_path / "again.onnx", "fp61")


def test_an_opset_that_is_too_old_is_converted_or_said(tmp_path):
    old = onnx.load(save_mlp(tmp_path / "m.onnx"))
    old.opset_import[0].version = 9
    onnx.save(old, tmp_path / "m.onnx")
    assert convert(tmp_path / "m.onnx", tmp_path / "out.onnx", "dynamic").options["opset_from"] == 9
    trained = helper.make_node("BatchNormalization", ["h", *["s"] * 4], ["r", "a", "b", "c", "d"])  # is none since 14
    old.graph.node[1].CopyFrom(trained)
    old.graph.initializer.append(numpy_helper.from_array(np.ones(8, np.float32), "s"))
    onnx.save(old, tmp_path / "m.onnx")
    with pytest.raises(UserError, match="int4 needs opset 21, and it can't be converted from 9"):
        convert(tmp_path / "m.onnx", tmp_path / "b.onnx", "int4")


def test_outputs_that_are_not_finite_are_refused(tmp_path):
    nodes = [helper.make_node("MatMul", ["x", "w"], ["h"]), helper.make_node("Log", ["h"], ["y"])]
    weight = np.random.default_rng(0).standard_normal((4, 3)).astype(np.float32)
    parent = models.save(tmp_path / "m.onnx", nodes, {"w": weight}, {"x": ["n", 4]}, {"y": ["n", 3]})
    with pytest.raises(UserError, match="NaN or infinite: keep the nodes that overflow"):
        convert(parent, tmp_path / "int4.onnx", "int4")
    assert {path.name for path in tmp_path.iterdir()} == {"m.onnx"}


# --- what is proven ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("to", ["dynamic", "fp16", "bf16", "int4"])
def test_every_layer_of_a_transformer_is_set_beside_its_parent(bert, pack, made, to):
    found, untold = layer_errors(bert, made[to][0], {"input": np.load(pack)["x_test"][:8]})
    assert untold == 0
    assert {error.layer for error in found} == set(layers_of(load_model(bert).graph))
    assert all(5 < error.sqnr_db < 120 for error in found)


def test_the_command_converts_and_proves(cnn, tmp_path):
    done = kdbench("convert", cnn, "--to", "fp16", "--out", "fp16.onnx", "--budget", "0.5", cwd=tmp_path)
    assert "fp16.onnx: " in done.stdout
    for name in ("size", "runs", "agreement", "SQNR", "latency"):
        assert f"\n{name} " in done.stdout
