"""What ships: the file answers as its artifact does, the script runs where only numpy and onnxruntime are."""

import errno
import json
import os
import re
import subprocess
import sys

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper

from kdbench import bundle, evaluate
from kdbench.data.pack import load_pack
from kdbench.errors import UserError
from kdbench.onnxfile import inspect
from kdbench.records import Preprocessing
from kdbench.steps import bundle as step
from kdbench.store import load_artifact, save_artifact, sidecar
from tests.conftest import kdbench, save_mlp

ALONE = """
import sys
allowed = set(sys.stdlib_module_names) | {"numpy", "onnxruntime"}
class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] not in allowed:
            raise ModuleNotFoundError(f"No module named '{name}'", name=name)
sys.meta_path.insert(0, Blocker())
"""


@pytest.fixture(scope="module")
def shipped(tiny_run, tmp_path_factory):
    """The last rung of a run, bundled; not to be written to."""
    return bundle(tiny_run, tmp_path_factory.mktemp("shipped") / "digits", license="apache-2.0").folder


def predicted(folder, samples, tmp_path):
    """What predict.py prints for samples, by an interpreter that can import numpy and onnxruntime alone."""
    alone = tmp_path / "alone"
    alone.mkdir(exist_ok=True)
    (alone / "sitecustomize.py").write_text(ALONE)
    np.save(tmp_path / "samples.npy", samples)
    return subprocess.run(
        [sys.executable, folder / "predict.py", tmp_path / "samples.npy"],
        env={**os.environ, "PYTHONPATH": str(alone)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )


def answers(path, x):
    session = ort.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return session.run(None, {session.get_inputs()[0].name: x})


def softmax(scores):
    e = np.exp(scores - scores.max(axis=1, keepdims=True))
    return e / e.sum(axis=1, keepdims=True)


def test_the_script_runs_with_numpy_and_onnxruntime_alone(shipped, tiny_run, tmp_path):
    pack = load_pack(tiny_run / "pack.npz")
    assert pack.x_test.dtype == np.uint8
    done = predicted(shipped, pack.x_test[:70], tmp_path)
    assert done.returncode == 0, done.stderr
    x = pack.test_inputs(inspect(tiny_run / "student-int8.onnx").inputs)["input"][:70]
    probabilities = softmax(answers(tiny_run / "student-int8.onnx", x)[0].astype(np.float64))
    lines = done.stdout.splitlines()
    assert len(lines) == 70
    for line, row in zip(lines, probabilities, strict=True):
        found = re.findall(r"(\d) ([0-9.]+)%", line)
        assert len(found) == 3
        for name, percent in found:
            assert abs(float(percent) - 100 * row[int(name)]) < 0.051
        assert row[int(found[0][0])] == row.max()
    assert len((shipped / "predict.py").read_text().splitlines()) <= 30


def test_the_blocker_of_these_tests_blocks(tmp_path):
    (tmp_path / "predict.py").write_text("import onnx")
    assert "No module named 'onnx'" in predicted(tmp_path, np.zeros(1), tmp_path).stderr


@pytest.mark.parametrize("rung", ["teacher", "student-int8"])
def test_raw_samples_get_the_very_scores_of_preprocessed_ones(rung, tiny_run, tmp_path):
    folder = bundle(tiny_run, tmp_path / "out", rung=rung).folder
    pack = load_pack(tiny_run / "pack.npz")
    before = inspect(tiny_run / f"{rung}.onnx")
    (scores,) = answers(tiny_run / f"{rung}.onnx", pack.test_inputs(before.inputs)["input"])
    logits, probabilities = answers(folder / "model.onnx", pack.x_test)
    np.testing.assert_array_equal(logits, scores)
    np.testing.assert_allclose(probabilities, softmax(scores), atol=1e-6)
    after = inspect(folder / "model.onnx")
    assert (after.opset, after.precision) == (before.opset, before.precision)
    assert after.operators.get("QuantizeLinear") == before.operators.get("QuantizeLinear")
    assert after.inputs[0].dtype == "uint8"


def test_the_file_names_its_classes_task_and_origin(shipped, tiny_run):
    meta = ort.InferenceSession(str(shipped / "model.onnx")).get_modelmeta().custom_metadata_map
    assert json.loads(meta["kdbench.classes"]) == list("0123456789")
    assert meta["kdbench.task"] == "classification"
    assert meta["kdbench.parent_sha256"] == inspect(tiny_run / "student-int8.onnx").sha256


def test_what_ships_can_be_evaluated_as_what_it_was_made_from(shipped, tiny_run):
    pack = tiny_run / "pack.npz"
    assert evaluate(shipped / "model.onnx", pack) == evaluate(tiny_run / "student-int8.onnx", pack)
    record = load_artifact(sidecar(shipped / "model.onnx"))
    assert (record.parent, record.step) == ("student-int8", "bundle")
    assert record.parameters == load_artifact(tiny_run / "student-int8.artifact.json").parameters


def test_the_card_says_where_it_comes_from_and_how_good_it_is(shipped, tiny_run):
    from tests.rows import load_rows

    card = (shipped / "README.md").read_text()
    front = dict(line.split(": ", 1) for line in card.split("---\n")[1].splitlines() if line[0] != " ")
    assert json.loads(front["license"]) == "apache-2.0"
    assert json.loads(front["pipeline_tag"]) == "image-classification"
    for rung in ("student-int8", "student-slim", "student", "teacher"):
        assert inspect(tiny_run / f"{rung}.onnx").sha256 in card
    rows = {row.rung: row for row in load_rows(tiny_run)}
    (line,) = [line for line in card.splitlines() if line.startswith("| student-int8 | ") and "kB" in line]
    assert f"| {100 * rows['student-int8'].accuracy:.1f} |" in line
    assert r"\[" in line
    assert "student-alone" not in card
    assert "the scores of both are the same" in card
    assert str(tiny_run.parent) not in card


def test_a_card_without_a_license_says_so_and_without_a_measurement_too(tiny_run, tmp_path):
    alone = tmp_path / "alone"
    alone.mkdir()
    for suffix in (".onnx", ".artifact.json"):
        (alone / f"student{suffix}").write_bytes((tiny_run / f"student{suffix}").read_bytes())
    card = (
        bundle(alone / "student.onnx", tmp_path / "out", pack=tiny_run / "pack.npz").folder / "README.md"
    ).read_text()
    assert "No license is stated" in card
    assert "license:" not in card
    assert "it was not measured where it was made" in card


def artifact_of(path, **fields):
    return save_artifact(path.parent, inspect(path).model_copy(update=fields))


def test_samples_with_several_labels_are_answered_with_those_that_hold(tmp_path):
    model = save_mlp(tmp_path / "labels.onnx")
    artifact_of(model, task="multi_label", classes=("a", "b", "c"), step="export")
    folder = bundle(model, tmp_path / "out").folder
    x = np.random.default_rng(0).standard_normal((40, 4)).astype(np.float32)
    scores, probabilities = answers(folder / "model.onnx", x)
    np.testing.assert_allclose(probabilities, 1 / (1 + np.exp(-scores)), atol=1e-6)
    lines = predicted(folder, x, tmp_path).stdout.splitlines()
    assert [re.findall("[abc]", line.replace("none", "")) for line in lines] == [
        [name for name, score in zip("abc", row, strict=True) if score > 0] for row in scores
    ]


def test_labels_tell_the_task_of_a_file_from_elsewhere(tmp_path):
    """Its record takes it for a classifier of one class a sample."""
    x = np.random.default_rng(0).standard_normal((20, 4)).astype(np.float32)
    np.savez(tmp_path / "pack.npz", x_test=x, y_test=np.random.default_rng(1).integers(0, 2, (20, 3)))
    model = save_mlp(tmp_path / "tagger.onnx")
    shipped = bundle(model, tmp_path / "shipped", pack=tmp_path / "pack.npz")
    assert shipped.bundled.artifact.task == "multi_label"
    session = ort.InferenceSession(str(shipped.folder / "model.onnx"), providers=["CPUExecutionProvider"])
    probabilities = session.run(["probabilities"], {session.get_inputs()[0].name: x})[0]
    np.testing.assert_allclose(probabilities, 1 / (1 + np.exp(-answers(model, x)[0])), atol=1e-6)


def test_a_fixed_batch_is_filled_up(tmp_path):
    folder = bundle(save_mlp(tmp_path / "fixed.onnx", batch=4), tmp_path / "out").folder
    x = np.random.default_rng(0).standard_normal((6, 4))
    done = predicted(folder, x, tmp_path)
    assert done.returncode == 0, done.stderr
    scores = np.concatenate(
        [answers(folder / "model.onnx", np.resize(part, (4, 4)).astype(np.float32))[0] for part in (x[:4], x[4:])]
    )
    assert [int(line[0]) for line in done.stdout.splitlines()] == scores[:6].argmax(axis=1).tolist()


def test_samples_that_do_not_fit_are_named_by_the_script(shipped, tmp_path):
    for samples in (np.zeros((2, 8, 8), np.uint8), np.zeros((2, 1, 8, 8)), np.zeros((2, 1, 8, 9), np.uint8)):
        done = predicted(shipped, samples, tmp_path)
        assert done.returncode == 1
        assert done.stderr == f"samples should be uint8, [N, 1, 8, 8], not {samples.dtype}, {list(samples.shape)}\n"


def softmax_model(path, name="x", batch="batch"):
    """[batch, 3] to its softmax, by an input of any name."""
    graph = helper.make_graph(
        [helper.make_node("Softmax", [name], ["out"])],
        "g",
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, [batch, 3])],
        [helper.make_tensor_value_info("out", TensorProto.FLOAT, [batch, 3])],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=10), path)
    return path


def test_probabilities_stay_as_they_are(tmp_path):
    folder = bundle(softmax_model(tmp_path / "m.onnx"), tmp_path / "out").folder
    assert [output.name for output in inspect(folder / "model.onnx").outputs] == ["out"]
    assert predicted(folder, np.log([[0.7, 0.2, 0.1]]), tmp_path).stdout == "0 70.0%, 1 20.0%, 2 10.0%\n"


def test_names_in_a_model_are_no_code(tmp_path):
    name = 'x"]); raise SystemExit("run"); ([""" \\'
    folder = bundle(softmax_model(tmp_path / "m.onnx", name), tmp_path / "out").folder
    done = predicted(folder, np.log([[0.7, 0.2, 0.1]]), tmp_path)
    assert done.stdout == "0 70.0%, 1 20.0%, 2 10.0%\n"


def test_preprocessing_of_each_channel_and_of_half_precision(tmp_path):
    """[N, 2, 3, 3] uint8, normalised by channel, into a model of float16 whose input is called x already."""
    graph = helper.make_graph(
        [helper.make_node("GlobalAveragePool", ["x"], ["p"]), helper.make_node("Flatten", ["p"], ["scores"])],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT16, ["batch", 2, 3, 3])],
        [helper.make_tensor_value_info("scores", TensorProto.FLOAT16, ["batch", 2])],
    )
    model = tmp_path / "half.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=10), model)
    preprocessing = Preprocessing(scale=1 / 255, mean=(0.5, 0.25), std=(2.0, 0.5))
    artifact_of(model, preprocessing=preprocessing, classes=("a", "b"))
    from kdbench.data.dataset import Dataset
    from kdbench.data.pack import save_pack

    x = np.random.default_rng(0).integers(0, 256, (9, 2, 3, 3)).astype(np.uint8)
    y = np.zeros(9, np.int64)
    save_pack(tmp_path / "pack.npz", Dataset(x, y, x, y, ("a", "b"), preprocessing), 4, 0)
    with pytest.raises(UserError, match="only they can tell: give --pack"):
        (tmp_path / "elsewhere").mkdir()
        for name in ("half.onnx", "half.artifact.json"):
            (tmp_path / "elsewhere" / name).write_bytes((tmp_path / name).read_bytes())
        bundle(tmp_path / "elsewhere" / "half.onnx", tmp_path / "out")
    folder = bundle(model, tmp_path / "out").folder
    assert inspect(folder / "model.onnx").inputs[0].dtype == "uint8"
    (scores, _) = answers(folder / "model.onnx", x)
    mean, std = np.array([0.5, 0.25]), np.array([2.0, 0.5])
    np.testing.assert_allclose(scores, (x.mean(axis=(2, 3)) / 255 - mean) / std, atol=2e-3)


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("TOLERANCE", -1.0, "an output moves by 0, more than -1 of the largest output"),
        ("INT8", ("Cast",), "1 operators would run in int8, 0 do without"),
        ("MOST_BYTES", 1000, "one ONNX file holds up to 2 GiB: bundle a smaller rung"),
    ],
)
def test_what_is_not_the_same_is_refused_and_nothing_is_left(name, value, said, tiny_run, tmp_path, monkeypatch):
    monkeypatch.setattr(step, name, value)
    with pytest.raises(UserError, match=said):
        bundle(tiny_run, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_a_disk_that_fills_up_in_between_leaves_nothing(tiny_run, tmp_path, monkeypatch):
    def full(*arguments, **options):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("kdbench.pipeline.bundling.card_of", full)
    with pytest.raises(UserError, match="out: cannot be written: No space left on device"):
        bundle(tiny_run, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_what_cannot_be_bundled_is_named(tiny_run, small_model, tmp_path):
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "file").touch()
    two = helper.make_graph(
        [helper.make_node("Add", ["a", "b"], ["c"])],
        "g",
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", 3]) for name in "ab"],
        [helper.make_tensor_value_info("c", TensorProto.FLOAT, ["batch", 3])],
    )
    onnx.save(helper.make_model(two, opset_imports=[helper.make_opsetid("", 17)], ir_version=10), tmp_path / "two.onnx")
    for source, options, said in (
        (tiny_run, {"out": "taken"}, "taken: exists already: choose another --out"),
        (tiny_run, {"rung": "studnt"}, "unknown rung 'studnt': did you mean 'student'"),
        (tiny_run, {"license": "my own"}, "--license: should be an identifier"),
        (small_model, {"rung": "student"}, "--rung: .* is a file"),
        (small_model, {"pack": tiny_run / "pack.npz"}, "has samples of shape"),
        (tmp_path / "two.onnx", {}, r"has 2 inputs \(a, b\): only a model of one"),
        (tmp_path / "nowhere.onnx", {}, "nowhere.onnx: no such file"),
        (tmp_path / "taken", {}, "not a run folder"),
    ):
        with pytest.raises(UserError, match=said):
            bundle(source, **{"out": tmp_path / options.pop("out", "out"), **options})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["small.onnx", "taken", "two.onnx"]


def test_what_bundle_prints(tiny_run, tmp_path):
    done = kdbench("bundle", tiny_run, "--rung", "student", "--out", "digits", cwd=tmp_path)
    assert "digits: student as model.onnx" in done.stdout
    assert "takes uint8; the same scores on 128 real samples" in done.stdout
    assert {path.name for path in (tmp_path / "digits").iterdir()} == {
        "README.md", "model.artifact.json", "model.onnx", "predict.py",
    }  # fmt: skip
