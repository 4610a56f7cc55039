"""Any ONNX file: what is in it, counted by hand; and what is no ONNX file, named."""

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from kdbench.errors import UserError
from kdbench.onnxfile import inspect, known_artifact, load_model, portable
from kdbench.store import save_artifact
from tests.conftest import save_mlp


def test_facts_of_a_hand_made_model(small_model):
    artifact = inspect(small_model)
    assert (artifact.parameters, artifact.macs, artifact.precision, artifact.opset) == (67, 56, "fp32", 17)
    assert artifact.inputs[0].shape == ("batch", 4)
    assert artifact.operators == {"Gemm": 2, "Relu": 1}
    assert artifact.size_bytes == small_model.stat().st_size


def test_macs_of_one_sample_do_not_depend_on_a_fixed_batch(tmp_path):
    assert inspect(save_mlp(tmp_path / "fixed.onnx", batch=8)).macs == 56


def test_macs_of_a_convolution(tmp_path):
    # 3×3 over 2 → 6 channels in 2 groups, 8×8 without padding: 6·6 outputs × 6 channels × (1·3·3) = 1,944
    weight = numpy_helper.from_array(np.ones((6, 1, 3, 3), np.float32), "w")
    graph = helper.make_graph(
        [helper.make_node("Conv", ["x", "w"], ["y"], group=2)],
        "conv",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 2, 8, 8])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", "channels", "h", "w"])],
        [weight],
    )
    path = tmp_path / "conv.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    assert inspect(path).macs == 36 * 6 * 9


def test_macs_are_unknown_where_shapes_are(tmp_path):
    weight = numpy_helper.from_array(np.ones((1, 1, 3, 3), np.float32), "w")
    graph = helper.make_graph(
        [helper.make_node("Conv", ["x", "w"], ["y"])],
        "conv",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 1, "height", "width"])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", "channels", "h", "w"])],
        [weight],
    )
    path = tmp_path / "conv.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    assert inspect(path).macs is None


@pytest.mark.parametrize(("opset", "macs"), [(17, 8 * 4), (13, None)])
def test_macs_within_a_function_of_the_model_are_counted(opset, macs, tmp_path):
    """Where its opset is another than the model's, it isn't told what it would count."""
    body = [helper.make_node("MatMul", ["x", "w"], ["y"])]
    function = helper.make_function("own", "Linear", ["x", "w"], ["y"], body, [helper.make_opsetid("", opset)])
    graph = helper.make_graph(
        [helper.make_node("Linear", ["x", "w"], ["y"], domain="own")],
        "function",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 8])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 4])],
        [numpy_helper.from_array(np.ones((8, 4), np.float32), "w")],
    )
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("own", 1)]
    path = tmp_path / "function.onnx"
    onnx.save(helper.make_model(graph, functions=[function], opset_imports=opsets, ir_version=8), path)
    assert inspect(path).macs == macs


def make_bad(kind, folder):
    path = folder / "bad.onnx"
    good = save_mlp(folder / "good.onnx").read_bytes()
    match kind:
        case "missing":
            pass
        case "empty":
            path.write_bytes(b"")
        case "folder":
            path.mkdir()
        case "text":
            path.write_text("this is no model")
        case "noise":
            path.write_bytes(np.random.default_rng(0).bytes(2000))
        case "half":
            path.write_bytes(good[: len(good) // 2])
        case "external":
            model = onnx.load_from_string(good)
            onnx.save(model, path, save_as_external_data=True, location="weights.bin", size_threshold=0)
            (folder / "weights.bin").unlink()
        case "outside" | "no name" | "long name":
            location = {"outside": "../weights.bin", "no name": "weights\0.bin", "long name": 5000 * "w"}[kind]
            model = onnx.load_from_string(good)
            onnx.save(model, path, save_as_external_data=True, location="weights.bin", size_threshold=0)
            model = onnx.load(path, load_external_data=False)
            for tensor in model.graph.initializer:
                for entry in tensor.external_data:
                    if entry.key == "location":
                        entry.value = location
            path.write_bytes(model.SerializeToString())
    return path


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("missing", "no such file"),
        ("empty", "an empty file"),
        ("folder", "a folder, not an ONNX file"),
        ("text", "not an ONNX model"),
        ("noise", "not an ONNX model"),
        ("half", "not a"),
        ("external", "'weights.bin' is missing"),
        ("outside", "leads outside its folder"),
        ("no name", "no file is named as its external data"),
        ("long name", "no file is named as its external data: [Errno 36] File name too long"),
    ],
)
def test_what_is_no_model_is_named(kind, message, tmp_path):
    path = make_bad(kind, tmp_path)
    for read in (load_model, inspect):
        with pytest.raises(UserError) as error:
            read(path)
        assert str(error.value).startswith(f"{path}: ")
        assert message in str(error.value)


def test_every_cut_of_a_model_is_a_user_error(small_model, tmp_path):
    content = small_model.read_bytes()
    path = tmp_path / "cut.onnx"
    for length in range(0, len(content), 7):
        path.write_bytes(content[:length])
        with pytest.raises(UserError):
            load_model(path)


def test_external_data_is_part_of_hash_and_size(tmp_path):
    model = onnx.load(save_mlp(tmp_path / "good.onnx"))
    path = tmp_path / "split.onnx"
    onnx.save(model, path, save_as_external_data=True, location="weights.bin", size_threshold=0)
    before = inspect(path)
    assert before.parameters == 67
    assert before.size_bytes == path.stat().st_size + (tmp_path / "weights.bin").stat().st_size
    data = bytearray((tmp_path / "weights.bin").read_bytes())
    data[0] ^= 1
    (tmp_path / "weights.bin").write_bytes(data)
    assert inspect(path).sha256 != before.sha256


def test_more_external_data_than_one_model_can_hold_are_judged_and_timed_but_not_rewritten(tmp_path, monkeypatch):
    from kdbench import bench, convert, evaluate, quantize

    model = onnx.load(save_mlp(tmp_path / "good.onnx"))
    path, pack = tmp_path / "split.onnx", tmp_path / "pack.npz"
    onnx.save(model, path, save_as_external_data=True, location="weights.bin", size_threshold=0)
    np.savez(pack, x_test=np.ones((3, 4), np.float32), y_test=np.zeros(3, np.int64))
    before = inspect(path)
    for limit in ("onnxfile.MOST_BYTES", "proofs.precision.LARGEST_BYTES"):
        monkeypatch.setattr(f"kdbench.{limit}", 100)
    assert inspect(path) == before
    assert evaluate(path, pack).samples == 3
    (row,) = bench([path], budget_s=0.1, out=tmp_path / "out").ladder.rows
    assert row.error is None
    for make in (quantize, lambda *files: convert(*files, "fp16")):
        with pytest.raises(UserError, match=r"split\.onnx: 0\.0 GiB don't fit into one ONNX file"):
            make(path, tmp_path / "made.onnx")


def test_a_record_beside_another_file_is_not_believed(small_model):
    recorded = inspect(small_model).model_copy(update={"parent": "teacher"})
    save_artifact(small_model.parent, recorded)
    assert known_artifact(small_model).parent == "teacher"
    save_mlp(small_model, scale=2.0)
    assert known_artifact(small_model).parent is None


def test_portable_bytes_hold_no_path_of_the_machine(small_model):
    model = onnx.load(small_model)
    model.graph.node[0].metadata_props.add(key="stack", value="/home/somebody/train.py")
    model.graph.node[0].doc_string = "/home/somebody/train.py"
    model.graph.value_info.add(name="h").doc_string = "/home/somebody"
    assert b"/home" in model.SerializeToString()
    assert b"/home" not in portable(model)


def test_a_file_with_external_data_is_evaluated(tmp_path):
    """Its optimised graph, which onnxruntime writes elsewhere, names the same data."""
    from kdbench import parity

    plain = save_mlp(tmp_path / "m.onnx")
    onnx.save(onnx.load(plain), tmp_path / "x.onnx", save_as_external_data=True, location="x.bin", size_threshold=0)
    assert parity(tmp_path / "x.onnx", plain).largest_difference == 0
