"""Sound ONNX files that look like nothing of ours: an answer, or one line that says why there is none."""

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from kdbench import UserError, convert, evaluate, parity, quantize, slim
from kdbench.data.generated import generate
from kdbench.evaluation import compare
from kdbench.onnxfile import inspect
from kdbench.pipeline import bench
from kdbench.proofs.rewritten import layer_errors
from kdbench.store import write_npz
from tests.conftest import save_mlp
from tests.rows import load_rows


def save(path, nodes, inputs, outputs, weights=None, opset=17, ir_version=10, domain=""):
    graph = helper.make_graph(
        nodes, "made",
        [helper.make_tensor_value_info(name, kind, shape) for name, kind, shape in inputs],
        [helper.make_tensor_value_info(name, kind, shape) for name, kind, shape in outputs],
        [numpy_helper.from_array(value, name) for name, value in (weights or {}).items()],
    )  # fmt: skip
    opsets = [helper.make_opsetid(domain, opset)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=ir_version), path)
    return path


@pytest.fixture
def pack(tmp_path):
    x = np.random.default_rng(0).standard_normal((6, 4)).astype(np.float32)
    write_npz(tmp_path / "pack.npz", {"x_test": x, "y_test": np.arange(6) % 3, "x_calibration": x})
    return tmp_path / "pack.npz"


FLOAT = TensorProto.FLOAT


def test_outputs_that_are_no_class_scores_are_named(tmp_path, pack):
    x = ("x", FLOAT, ["n", 4])
    axes = {"axes": np.array([1])}
    one = save(
        tmp_path / "sigmoid.onnx", [helper.make_node("ReduceSum", ["x", "axes"], ["y"], keepdims=0)],
        [x], [("y", FLOAT, ["n"])], axes,
    )  # fmt: skip
    column = save(
        tmp_path / "column.onnx", [helper.make_node("ReduceSum", ["x", "axes"], ["y"], keepdims=1)],
        [x], [("y", FLOAT, ["n", 1])], axes,
    )  # fmt: skip
    for single in (one, column):
        with pytest.raises(UserError, match="one number a sample"):
            evaluate(single, pack)
    scalar = save(
        tmp_path / "scalar.onnx", [helper.make_node("ReduceSum", ["x"], ["y"], keepdims=0)], [x], [("y", FLOAT, [])]
    )
    with pytest.raises(UserError, match="no batch axis"):
        evaluate(scalar, pack)


def test_outputs_that_are_no_class_scores_are_timed_on_samples_without_labels(tmp_path):
    nodes = [helper.make_node("ReduceSum", ["x", "axes"], ["y"], keepdims=1)]
    model = save(
        tmp_path / "m.onnx", nodes, [("x", FLOAT, ["n", 4])], [("y", FLOAT, ["n", 1])], {"axes": np.array([1])}
    )
    write_npz(tmp_path / "pack.npz", {"x_test": np.ones((6, 4), np.float32)})
    bench([model], pack=tmp_path / "pack.npz", budget_s=0.1, out=tmp_path / "bench")
    (row,) = load_rows(tmp_path / "bench")
    assert row.rounds == 5
    assert row.accuracy is None


@pytest.mark.parametrize("kept", [0, 1])
def test_a_class_as_output_is_an_answer(tmp_path, pack, kept):
    labels = save(
        tmp_path / "argmax.onnx", [helper.make_node("ArgMax", ["x"], ["y"], axis=1, keepdims=kept)],
        [("x", FLOAT, [1, 4])], [("y", TensorProto.INT64, [1] * (1 + kept))],
    )  # fmt: skip
    x = np.eye(4, dtype=np.float32)[[0, 1, 2, 3, 1, 1]]
    write_npz(pack, {"x_test": x, "y_test": np.arange(6) % 3, "x_calibration": x})
    assert evaluate(labels, pack).correct == 4  # 0, 1, 2, and the last but one


@pytest.mark.parametrize("shape", [(4,), (4, 1)])
def test_models_of_one_output_a_sample_agree_where_it_means_the_same(shape):
    ones, others = np.array([0, 1, 2, 3]).reshape(shape), np.array([3, 1, 2, 0]).reshape(shape)
    assert compare([ones], [others]).agreement == 0.5
    assert compare([ones], [ones]).agreement == 1.0
    scores = np.array([-4.0, 2.0, 3.0, 5.0], np.float32).reshape(shape)
    assert compare([scores], [scores / 2]).agreement == 1.0
    assert compare([scores], [-scores]).agreement == 0.0
    assert compare([scores], [scores + 6]).agreement == 0.75


def test_no_input_and_text_input_are_named(tmp_path, pack):
    value = {"value": numpy_helper.from_array(np.zeros((1, 3), np.float32))}
    none = save(tmp_path / "none.onnx", [helper.make_node("Constant", [], ["y"], **value)], [], [("y", FLOAT, [1, 3])])
    with pytest.raises(UserError, match="takes no input"):
        parity(none, none)
    text = save(
        tmp_path / "text.onnx", [helper.make_node("Identity", ["x"], ["y"])],
        [("x", TensorProto.STRING, ["n", 4])], [("y", TensorProto.STRING, ["n", 4])],
    )  # fmt: skip
    with pytest.raises(UserError, match="takes object"):
        evaluate(text, pack)
    with pytest.raises(UserError, match="inputs can't be generated"):
        bench([text], out=tmp_path / "bench")


def test_outputs_that_are_no_tensors_of_numbers_are_named(tmp_path):
    """As scikit-learn's classifiers have them: a map of probabilities by class, beside text for a class."""
    text = helper.make_tensor_value_info("y", TensorProto.STRING, ["n", 4])
    pair = helper.make_map_type_proto(TensorProto.INT64, helper.make_tensor_type_proto(FLOAT, []))
    maps = helper.make_value_info("y", helper.make_sequence_type_proto(pair))
    zipped = helper.make_node("ZipMap", ["x"], ["y"], domain="ai.onnx.ml", classlabels_int64s=[0, 1, 2, 3])
    for node, output in ((helper.make_node("Cast", ["x"], ["y"], to=TensorProto.STRING), text), (zipped, maps)):
        x = helper.make_tensor_value_info("x", FLOAT, ["n", 4])
        opsets = [helper.make_opsetid("", 17), helper.make_opsetid("ai.onnx.ml", 1)]
        graph = helper.make_graph([node], "made", [x], [output])
        onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=10), tmp_path / "x.onnx")
        with pytest.raises(UserError, match=r"x\.onnx: .*output 'y' is text, a sequence or a map, not .* zipmap=False"):
            slim(tmp_path / "x.onnx", tmp_path / "slim.onnx")


def test_a_model_without_standard_operators_is_read(tmp_path):
    path = save(
        tmp_path / "ml.onnx", [helper.make_node("Binarizer", ["x"], ["y"], domain="ai.onnx.ml")],
        [("x", FLOAT, ["n", 4])], [("y", FLOAT, ["n", 4])], opset=3, domain="ai.onnx.ml",
    )  # fmt: skip
    assert inspect(path).opset == 0
    with pytest.raises(UserError, match="onnxslim can't slim it"):
        quantize(path, tmp_path / "int8.onnx")


def test_outputs_that_are_not_finite_are_refused_by_name(tmp_path):
    nodes = [helper.make_node("MatMul", ["x", "w"], ["h"]), helper.make_node("Log", ["h"], ["y"])]
    weights = {"w": np.random.default_rng(0).standard_normal((4, 3)).astype(np.float32)}
    path = save(tmp_path / "log.onnx", nodes, [("x", FLOAT, ["n", 4])], [("y", FLOAT, ["n", 3])], weights)
    slim(path, tmp_path / "slim.onnx")  # the same NaN on both sides is the same output
    with pytest.raises(UserError, match="NaN or infinite"):
        quantize(path, tmp_path / "int8.onnx")
    assert not (tmp_path / "int8.onnx").exists()


def test_a_model_without_a_batch_axis_is_named_itself(tmp_path):
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["h"]),
        helper.make_node("ReduceMean", ["h"], ["y"], axes=[0], keepdims=0),
    ]
    weights = {"w": np.random.default_rng(0).standard_normal((4, 3)).astype(np.float32)}
    path = save(tmp_path / "mean.onnx", nodes, [("x", FLOAT, ["n", 4])], [("y", FLOAT, [3])], weights)
    for step in (slim, quantize):
        with pytest.raises(UserError) as error:
            step(path, tmp_path / "made.onnx")
        assert str(error.value) == f"{path}: output 'y' of shape (3,) has no batch axis first"
    assert [file.name for file in tmp_path.iterdir()] == ["mean.onnx"]


def test_recurrent_layers_that_stay_in_float_are_said(tmp_path):
    weights = {
        "w": np.ones((1, 15, 4), np.float32), "r": np.ones((1, 15, 5), np.float32) / 9, "axis": np.array([0]),
        "head": np.eye(5, 3, dtype=np.float32),
    }  # fmt: skip
    nodes = [
        helper.make_node("Transpose", ["x"], ["steps"], perm=[1, 0, 2]),
        helper.make_node("GRU", ["steps", "w", "r"], ["", "state"], hidden_size=5),
        helper.make_node("Squeeze", ["state", "axis"], ["last"]),
        helper.make_node("MatMul", ["last", "head"], ["y"]),
    ]
    path = save(tmp_path / "gru.onnx", nodes, [("x", FLOAT, ["n", 7, 4])], [("y", FLOAT, ["n", 3])], weights)
    made = quantize(path, tmp_path / "int8.onnx")
    assert made.operators["GRU"] == 1
    assert any("GRU layers stay in float" in warning for warning in made.warnings)


def test_an_input_that_nobody_reads_may_be_slimmed_away(tmp_path):
    nodes = [helper.make_node("Relu", ["x"], ["y"])]
    inputs = [("x", FLOAT, ["n", 4]), ("unused", FLOAT, ["n", 2])]
    path = save(tmp_path / "unused.onnx", nodes, inputs, [("y", FLOAT, ["n", 4])])
    assert slim(path, tmp_path / "slim.onnx").parameters == 0


def test_an_input_that_nobody_reads_is_in_the_way_of_no_precision(tmp_path):
    nodes, weights = [helper.make_node("MatMul", ["x", "w"], ["y"], name="product")], {"w": np.eye(8, 3, dtype="f4")}
    inputs = [("mask", FLOAT, ["n", 4]), ("x", FLOAT, ["n", 8])]
    path = save(tmp_path / "unused.onnx", nodes, inputs, [("y", FLOAT, ["n", 3])], weights)
    made = quantize(path, tmp_path / "int8.onnx")
    assert [spec.name for spec in made.inputs] == ["x"]
    told, _ = layer_errors(path, tmp_path / "int8.onnx", generate(inspect(path).inputs, 2, {}))
    assert [error.layer for error in told] == ["w"]
    assert convert(path, tmp_path / "fp16.onnx", "fp16").warnings == ()


def test_work_that_is_not_counted_is_not_given_as_zero(tmp_path):
    product = helper.make_node("Einsum", ["x", "w"], ["y"], equation="ij,jk->ik")
    weights = {"w": np.ones((4, 3), np.float32)}
    einsum = save(tmp_path / "einsum.onnx", [product], [("x", FLOAT, ["n", 4])], [("y", FLOAT, ["n", 3])], weights)
    assert inspect(einsum).macs is None
    constant = numpy_helper.from_array(np.ones((4, 3), np.float32))
    nodes = [helper.make_node("Constant", [], ["w"], value=constant), helper.make_node("MatMul", ["x", "w"], ["y"])]
    found = inspect(save(tmp_path / "constant.onnx", nodes, [("x", FLOAT, ["n", 4])], [("y", FLOAT, ["n", 3])]))
    assert (found.parameters, found.macs) == (12, 12)


def test_int8_that_does_not_fuse_is_flagged_without_data_too(tmp_path):
    # Quantized activations alone: the product itself runs in float.
    weights = {
        "w": np.random.default_rng(0).standard_normal((4, 3)).astype(np.float32),
        "scale": np.array(0.1, np.float32),
        "zero": np.array(3, np.uint8),
    }
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "scale", "zero"], ["q"]),
        helper.make_node("DequantizeLinear", ["q", "scale", "zero"], ["h"]),
        helper.make_node("MatMul", ["h", "w"], ["y"]),
    ]
    path = save(tmp_path / "half.onnx", nodes, [("x", FLOAT, ["n", 4])], [("y", FLOAT, ["n", 3])], weights)
    bench([path], out=tmp_path / "bench", budget_s=0.1)
    (row,) = load_rows(tmp_path / "bench")
    assert row.precision == "int8"
    assert any("int8 did not fuse: 1 of 1" in flag for flag in row.flags)


def test_a_newer_format_than_onnxruntime_reads_is_said(tmp_path):
    path = save(
        tmp_path / "ir14.onnx", [helper.make_node("Relu", ["x"], ["y"])],
        [("x", FLOAT, ["n", 4])], [("y", FLOAT, ["n", 4])], ir_version=14,
    )  # fmt: skip
    with pytest.raises(UserError, match=r"ir14 has IR 14 .* onnxruntime reads up to 13"):
        bench([path], out=tmp_path / "bench")


def test_a_complete_result_survives_an_interrupted_repetition(tmp_path, monkeypatch):
    from kdbench.benchmark.schedule import Schedule

    model = save_mlp(tmp_path / "good.onnx")
    bench([model], out=tmp_path / "bench", budget_s=0.1)
    before = (tmp_path / "bench" / "results.json").read_bytes()
    whole = Schedule.rounds

    def interrupted(self, progress):
        for number in whole(self, progress):
            if number == 1:
                raise KeyboardInterrupt
            yield number

    monkeypatch.setattr(Schedule, "rounds", interrupted)
    with pytest.raises(KeyboardInterrupt):
        bench([model], out=tmp_path / "bench", budget_s=0.1)
    assert (tmp_path / "bench" / "results.json").read_bytes() == before
    (row,) = load_rows(tmp_path / "bench" / "results.partial.json")
    assert "2 of 5 processes measured: interrupted, bench again" in row.flags


def test_a_rung_made_from_another_parent_is_refused(tiny_run, tmp_path):
    import shutil

    run = tmp_path / "run"
    shutil.copytree(tiny_run, run)
    for suffix in (".onnx", ".artifact.json"):
        text = (run / f"student-alone{suffix}").read_bytes().replace(b"student-alone", b"student")
        (run / f"student{suffix}").write_bytes(text)
    for path in run.glob("student-alone*"):
        path.unlink()
    with pytest.raises(UserError, match=r"student-slim\.onnx: made from another student"):
        bench([run], out=tmp_path / "bench", budget_s=0.1)
