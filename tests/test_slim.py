"""Slimming: what it takes out of a graph, and what it refuses to make of one."""

import os

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from click.testing import CliRunner
from onnx import TensorProto, helper, numpy_helper

from kdbench import UserError, slim
from kdbench.cli.slim import slim as slim_command
from kdbench.evaluation import compare
from kdbench.onnxfile import inspect, load_model
from kdbench.report.operators import operator_table
from kdbench.steps import slim as step
from kdbench.steps.passes import by_onnxruntime
from kdbench.store import load_artifact, sidecar
from tests.conftest import save_mlp
from tests.models import cnn, int8, save
from tests.test_models import export_untrained


def normalized(path, dead=False, kind=np.float32):
    """A convolution with batch norm, a weight that is a sum of constants, and a node that changes nothing; with `dead`
    also weights and a node that nothing reads."""
    generator = np.random.default_rng(0)
    weights = {
        "c": generator.standard_normal((8, 3, 3, 3)),
        "scale": 1 + generator.random(8),
        "bias": generator.standard_normal(8),
        "mean": generator.standard_normal(8),
        "variance": 1 + generator.random(8),
        "first": generator.standard_normal((8, 5)),
        "second": generator.standard_normal((8, 5)),
    } | ({"unread": generator.standard_normal(5000)} if dead else {})
    nodes = [
        helper.make_node("Conv", ["x", "c"], ["h"], name="conv", pads=[1] * 4),
        helper.make_node("BatchNormalization", ["h", "scale", "bias", "mean", "variance"], ["n"], name="norm"),
        helper.make_node("Relu", ["n"], ["r"], name="relu"),
        helper.make_node("GlobalAveragePool", ["r"], ["p"], name="pool"),
        helper.make_node("Flatten", ["p"], ["f"], name="flat"),
        helper.make_node("Identity", ["f"], ["same"], name="identity"),
        helper.make_node("Add", ["first", "second"], ["w"], name="sum"),
        helper.make_node("MatMul", ["same", "w"], ["y"], name="product"),
        *([helper.make_node("Exp", ["r"], ["unread_too"], name="exp")] if dead else []),
    ]
    arrays = {name: values.astype(kind) for name, values in weights.items()}
    save(path, nodes, arrays, {"x": ["n", 3, 16, 16]}, {"y": ["n", 5]})
    if kind == np.float16:
        model = onnx.load(path)
        for value in (*model.graph.input, *model.graph.output):
            value.type.tensor_type.elem_type = TensorProto.FLOAT16
        onnx.save(model, path)
    return path


def outputs(path, feed):
    return ort.InferenceSession(path, providers=["CPUExecutionProvider"]).run(None, feed)


def images(count=4, kind=np.float32):
    return np.random.default_rng(3).standard_normal((count, 3, 16, 16)).astype(kind)


SLIM = {"Conv": 1, "Relu": 1, "GlobalAveragePool": 1, "Flatten": 1, "MatMul": 1}


@pytest.mark.parametrize("names", [("onnxslim",), ("onnxruntime",), ("onnxslim", "onnxruntime")], ids="+".join)
def test_each_pass_folds_batch_norm_and_constants(names, tmp_path, monkeypatch):
    monkeypatch.setattr(step, "PASSES", {name: step.PASSES[name] for name in names})
    path = normalized(tmp_path / "model.onnx", dead=True)
    made = slim(path, tmp_path / "slim.onnx")
    # onnxruntime runs what nobody reads: it takes the weights away alone.
    assert made.operators == (SLIM if "onnxslim" in names else SLIM | {"Exp": 1})
    assert made.parameters == 8 * 3 * 9 + 8 + 8 * 5
    assert made.size_bytes < 3000 < 20000 < path.stat().st_size
    assert (made.opset, made.ir_version) == (17, 10)
    assert made.inputs == inspect(path).inputs
    assert made.outputs == inspect(path).outputs
    found, expected = (outputs(file, {"x": images()}) for file in (tmp_path / "slim.onnx", path))
    assert compare(found, expected).largest_difference < 1e-5
    assert {entry.domain for entry in load_model(tmp_path / "slim.onnx").opset_import} == {""}


def test_a_slim_file_stays_as_it_is(tmp_path):
    first = slim(normalized(tmp_path / "model.onnx"), tmp_path / "first.onnx")
    again = slim(tmp_path / "first.onnx", tmp_path / "again.onnx")
    assert (tmp_path / "again.onnx").read_bytes() == (tmp_path / "first.onnx").read_bytes()
    assert again.operators == first.operators == SLIM


def test_onnxruntime_is_used_only_where_it_saves_a_node(tmp_path):
    nodes = [
        helper.make_node("Relu", ["x"], ["r"], name="relu"),
        helper.make_node("Clip", ["r", "low", "high"], ["c"], name="clip"),
        helper.make_node("MatMul", ["c", "w"], ["y"], name="product"),
    ]
    weights = {"low": np.float32(0), "high": np.float32(6), "w": np.ones((4, 3), np.float32)}
    weights = {name: np.asarray(values) for name, values in weights.items()}
    path = save(tmp_path / "model.onnx", nodes, weights, {"x": ["n", 4]}, {"y": ["n", 3]})
    made = slim(path, tmp_path / "slim.onnx")
    assert "onnxruntime" in made.options["passes"]
    assert made.operators == {"Clip": 1, "MatMul": 1}
    assert slim(path, tmp_path / "twice.onnx").sha256 == made.sha256
    model = load_model(cnn(tmp_path / "cnn.onnx"))
    assert by_onnxruntime(model, tmp_path / "cnn.onnx") is model


# --- passes that go wrong ---------------------------------------------------------------------------------------------


def head_of(model):
    return next(tensor for tensor in model.graph.initializer if list(tensor.dims[1:]) == [5])


def weaker(model, path):
    """Outputs move; it takes a node away, as a pass should."""
    changed = step.by_onnxslim(model, path)
    head = head_of(changed)
    head.raw_data = (numpy_helper.to_array(head) * np.float32(0.9)).tobytes()
    return changed


def failing(model, path):
    raise UserError(f"{path}: is not to its taste")


def for_this_machine(model, path):
    """What onnxruntime runs here: operators and layouts of its own."""
    options = ort.SessionOptions()
    options.optimized_model_filepath = str(path.with_name("running.onnx"))
    ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return onnx.load(path.with_name("running.onnx"))


def newer(model, path):
    changed = step.by_onnxslim(model, path)
    next(entry for entry in changed.opset_import if not entry.domain).version = 18
    return changed


def broken(model, path):
    """A valid file that can't run: its weights don't fit."""
    changed = step.by_onnxslim(model, path)
    head = head_of(changed)
    head.CopyFrom(numpy_helper.from_array(np.ones((7, 5), np.float32), head.name))
    return changed


def renaming(model, path):
    changed = step.by_onnxslim(model, path)
    next(node for node in changed.graph.node if node.output[0] == "y").output[0] = changed.graph.output[0].name = "z"
    return changed


WRONG = [
    (weaker, r"moved an output by [\d.]+, more than 0\.0001 of its largest number [\d.]+"),
    (failing, "is not to its taste"),
    (for_this_machine, r"brings com\.microsoft\.\w+.*the standard of opset 17 doesn't know"),
    (newer, "raises the opset from 17 to 18"),
    (broken, "made what onnxruntime can't run"),
    (renaming, "has other outputs"),
]


@pytest.mark.parametrize(("wrong", "reason"), WRONG, ids=[wrong.__name__ for wrong, _ in WRONG])
def test_a_pass_that_goes_wrong_is_left_out_by_name(wrong, reason, tmp_path, monkeypatch):
    path = normalized(tmp_path / "model.onnx")
    monkeypatch.setattr(step, "PASSES", {"made up": wrong, "onnxslim": step.by_onnxslim})
    made = slim(path, tmp_path / "slim.onnx")
    assert made.operators == SLIM
    (remark,) = made.options["remarks"]
    assert remark.startswith("made up left out: ")
    monkeypatch.setattr(step, "PASSES", {"made up": wrong})
    with pytest.raises(UserError, match=reason) as error:
        slim(path, tmp_path / "alone.onnx")
    assert str(error.value).startswith(f"{tmp_path / 'alone.onnx'}: not written: made up left out: ")
    assert not list(tmp_path.glob("*alone*"))


def test_a_model_that_answers_otherwise_each_time_is_refused(tmp_path):
    nodes = [
        helper.make_node("RandomNormalLike", ["x"], ["noise"], name="noise"),
        helper.make_node("Add", ["x", "noise"], ["y"], name="sum"),
    ]
    path = save(tmp_path / "model.onnx", nodes, {}, {"x": ["n", 4]}, {"y": ["n", 4]})
    with pytest.raises(UserError, match=r"slim\.onnx: not written: .*moved an output by"):
        slim(path, tmp_path / "slim.onnx")
    assert [file.name for file in tmp_path.iterdir()] == ["model.onnx"]


# --- kinds of models --------------------------------------------------------------------------------------------------


def test_half_precision_is_slimmed_without_this_cpus_casts(tmp_path):
    path = normalized(tmp_path / "half.onnx", kind=np.float16)
    made = slim(path, tmp_path / "slim.onnx")
    assert made.precision == "fp16"
    assert made.operators == SLIM
    found, expected = (outputs(file, {"x": images(kind=np.float16)}) for file in (tmp_path / "slim.onnx", path))
    assert compare(found, expected).largest_difference < 5e-3 * np.abs(expected[0]).max()
    assert any("onnxruntime left out" in remark and "Cast" in remark for remark in made.options["remarks"])


def test_int8_keeps_its_pairs_and_answers(tmp_path):
    path = int8(cnn(tmp_path / "model.onnx"), tmp_path / "int8.onnx")
    made = slim(path, tmp_path / "slim.onnx")
    assert made.precision == "int8"
    before = inspect(path).operators
    assert {name: made.operators.get(name) for name in before} == before
    assert made.metrics["parity_largest_difference"] <= 1e-4


def test_external_data_become_one_file(tmp_path):
    path = tmp_path / "split.onnx"
    model = onnx.load(normalized(tmp_path / "model.onnx"))
    onnx.save(model, path, save_as_external_data=True, location="weights.bin", size_threshold=0)
    made = slim(path, tmp_path / "slim" / "slim.onnx")
    assert made.operators == SLIM
    assert made.metrics["size_bytes_before"] == path.stat().st_size + (tmp_path / "weights.bin").stat().st_size
    (tmp_path / "more.bin").touch()
    os.truncate(tmp_path / "more.bin", 2**31)
    model = onnx.load(path, load_external_data=False)
    more = model.graph.initializer.add(name="more", data_type=1, dims=[2**29], data_location=TensorProto.EXTERNAL)
    more.external_data.add(key="location", value="more.bin")
    path.write_bytes(model.SerializeToString())
    with pytest.raises(UserError, match=r"split\.onnx: 2\.0 GiB don't fit into one ONNX file"):
        slim(path, tmp_path / "again.onnx")


def test_fixed_batches_and_free_sizes_stay(tmp_path):
    fixed = slim(save_mlp(tmp_path / "fixed.onnx", batch=2), tmp_path / "fixed-slim.onnx")
    assert fixed.inputs[0].shape == (2, 4)
    nodes = [
        helper.make_node("Identity", ["x"], ["same"], name="identity"),
        helper.make_node("ReduceMean", ["same"], ["m"], name="mean", axes=[1], keepdims=0),
        helper.make_node("MatMul", ["m", "w"], ["y"], name="product"),
    ]
    path = save(
        tmp_path / "free.onnx", nodes, {"w": np.ones((4, 3), np.float32)}, {"x": ["n", "length", 4]}, {"y": ["n", 3]}
    )
    with pytest.raises(UserError, match="dimension 'length' has no size: add --dim length=N"):
        slim(path, tmp_path / "free-slim.onnx")
    free = slim(path, tmp_path / "free-slim.onnx", dims={"length": 5})
    assert free.inputs[0].shape == ("n", "length", 4)
    assert free.operators == {"MatMul": 1, "ReduceMean": 1}
    longer = {"x": np.random.default_rng(0).standard_normal((2, 9, 4)).astype(np.float32)}
    assert np.allclose(*(outputs(file, longer)[0] for file in (path, tmp_path / "free-slim.onnx")))


def test_versions_come_within_what_onnxruntime_reads(tmp_path):
    model = onnx.load(normalized(tmp_path / "model.onnx"))
    model.ir_version = 14
    onnx.save(model, tmp_path / "ir14.onnx")
    made = slim(tmp_path / "ir14.onnx", tmp_path / "slim.onnx")
    assert (made.ir_version, made.opset, made.operators) == (13, 17, SLIM)
    relu = helper.make_graph(
        [helper.make_node("Relu", ["x"], ["y"])],
        "newer",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 4])],
    )
    newer = helper.make_model(relu, opset_imports=[helper.make_opsetid("", 27)], ir_version=10)
    onnx.save(newer, tmp_path / "newer.onnx")
    with pytest.raises(UserError, match="opset 27 is newer than onnxruntime reads: export it with 26 or older"):
        slim(tmp_path / "newer.onnx", tmp_path / "no.onnx")


# --- transformers -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def bert(tmp_path_factory):
    options = {"vocabulary": 120, "layers": 1, "heads": 2, "width": 16}
    return export_untrained("bert", options, (8,), tmp_path_factory.mktemp("bert"))[1]


def test_transformers_are_fused_when_asked_for(bert, tmp_path):
    plain = slim(bert, tmp_path / "plain.onnx")
    assert {node.domain for node in load_model(tmp_path / "plain.onnx").graph.node} == {""}
    assert plain.warnings == ()
    fused = slim(bert, tmp_path / "fused.onnx", fuse=True)
    assert sum(fused.operators.values()) < sum(plain.operators.values())
    assert fused.options["fused"]["SkipLayerNormalization"] > 0
    assert any("runs in onnxruntime alone" in warning for warning in fused.warnings)
    told = any("attention was not fused" in remark for remark in fused.options["remarks"])
    assert told != bool(fused.options["fused"].get("Attention"))
    tokens = {"input": np.random.default_rng(5).integers(0, 50, (7, 8))}
    tokens["input"][:, 5:] = 0
    found, expected = (outputs(file, tokens) for file in (tmp_path / "fused.onnx", bert))
    assert compare(found, expected).largest_difference < 1e-5


def attention(path):
    """One layer of an encoder on [n, 6, 16], two heads, written as BERT's first exporters did."""
    generator = np.random.default_rng(0)
    weights = {"heads": np.array([0, 0, 2, 8]), "joined": np.array([0, 0, 16]), "root": np.array(8**0.5, np.float32)}
    nodes = []
    for name, perm in (("q", [0, 2, 1, 3]), ("k", [0, 2, 3, 1]), ("v", [0, 2, 1, 3])):
        weights[f"w{name}"] = generator.standard_normal((16, 16)).astype(np.float32) / 4
        weights[f"b{name}"] = generator.standard_normal(16).astype(np.float32)
        nodes += [
            helper.make_node("MatMul", ["x", f"w{name}"], [f"{name}1"], name=f"{name}_product"),
            helper.make_node("Add", [f"{name}1", f"b{name}"], [f"{name}2"], name=f"{name}_sum"),
            helper.make_node("Reshape", [f"{name}2", "heads"], [f"{name}3"], name=f"{name}_heads"),
            helper.make_node("Transpose", [f"{name}3"], [name], name=f"{name}_turned", perm=perm),
        ]
    weights["wo"] = generator.standard_normal((16, 16)).astype(np.float32) / 4
    weights |= {name: np.ones(16, np.float32) for name in ("bo", "scale", "bias")}
    nodes += [
        helper.make_node("MatMul", ["q", "k"], ["qk"], name="qk"),
        helper.make_node("Div", ["qk", "root"], ["scores"], name="scores"),
        helper.make_node("Softmax", ["scores"], ["shares"], name="shares", axis=-1),
        helper.make_node("MatMul", ["shares", "v"], ["context"], name="context"),
        helper.make_node("Transpose", ["context"], ["turned"], name="turned", perm=[0, 2, 1, 3]),
        helper.make_node("Reshape", ["turned", "joined"], ["one"], name="one"),
        helper.make_node("MatMul", ["one", "wo"], ["o1"], name="o_product"),
        helper.make_node("Add", ["o1", "bo"], ["o"], name="o_sum"),
        helper.make_node("Add", ["o", "x"], ["sum"], name="residual"),
        helper.make_node("LayerNormalization", ["sum", "scale", "bias"], ["normal"], name="norm"),
        helper.make_node("ReduceMean", ["normal"], ["y"], name="mean", axes=[1], keepdims=0),
    ]
    return save(path, nodes, weights, {"x": ["n", 6, 16]}, {"y": ["n", 16]})


def test_attention_that_is_known_is_fused_with_equal_outputs(tmp_path):
    path = attention(tmp_path / "model.onnx")
    made = slim(path, tmp_path / "slim.onnx", fuse=True)
    assert made.operators == {"Attention": 1, "MatMul": 1, "ReduceMean": 1, "SkipLayerNormalization": 1}
    assert made.options["fused"] == {"Attention": 1, "SkipLayerNormalization": 1}
    assert not any("attention was not fused" in remark for remark in made.options["remarks"])
    feed = {"x": np.random.default_rng(7).standard_normal((3, 6, 16)).astype(np.float32)}
    found, expected = (outputs(file, feed) for file in (tmp_path / "slim.onnx", path))
    assert compare(found, expected).largest_difference < 1e-5


def test_what_is_no_transformer_is_only_slimmed(tmp_path):
    path = normalized(tmp_path / "model.onnx")
    made = slim(path, tmp_path / "slim.onnx", fuse=True)
    assert made.operators == SLIM
    assert made.warnings == ()
    assert any("attention was not fused" in remark for remark in made.options["remarks"])


# --- what is told -----------------------------------------------------------------------------------------------------


def test_the_table_of_operators_is_printed_and_recorded(tmp_path):
    path = normalized(tmp_path / "model.onnx", dead=True)
    done = CliRunner().invoke(slim_command, [str(path), "--out", str(tmp_path / "slim.onnx"), "--fuse"])
    assert done.exit_code == 0, done.output
    assert done.stderr.startswith("NOTE: attention was not fused")
    lines = done.stdout.splitlines()
    table = operator_table(load_artifact(sidecar(tmp_path / "slim.onnx")))
    assert max(map(len, table)) <= 100
    assert lines[: len(table)] == table
    cells = {line.split()[0]: line.split()[1:] for line in table}
    assert cells["BatchNormalization"] == ["1", "–"]
    assert cells["Conv"] == ["1", "1"]
    assert cells["nodes"] == ["9", "5"]
    assert cells["parameters"] == ["5.33", "k", "264"]
    assert operator_table(inspect(path)) == []
