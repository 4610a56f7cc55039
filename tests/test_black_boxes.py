"""ONNX files as teachers: what they answer is recognised, their classes are mapped, and their workers end."""

import json
from types import SimpleNamespace

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from kdbench import evaluate, parity
from kdbench.backends import pick_backend
from kdbench.backends.client import Worker
from kdbench.benchmark.cells import Cell, Subject, inputs
from kdbench.data.pack import load_pack, save_pack
from kdbench.evaluation import answer
from kdbench.functions import source
from kdbench.onnxfile import inspect, known_artifact
from kdbench.records import Artifact, Preprocessing, Teacher, TensorSpec
from kdbench.steps import train
from kdbench.steps.lesson import Lesson
from kdbench.steps.slim import comparison_inputs
from kdbench.steps.teach import at_work
from kdbench.store import RunFolder, save_artifact
from kdbench.teachers import black_box, weights_file
from kdbench.teachers.black_box import BlackBox, Options
from kdbench.teachers.source import Wanted
from kdbench.training import weights
from tests.test_teachers import OWN, RECIPE, TRAINING, made, named, recipe, refused, table


def save_linear(path, end=None, batch="n", classes=10, inputs=1, dtype=TensorProto.FLOAT, shape=(1, 8, 8)):
    """A linear classifier of flattened images, its logits behind an activation `end`; its matrix."""
    matrix = np.random.default_rng(0).standard_normal((int(np.prod(shape)), classes)).astype(np.float32)
    nodes = [
        helper.make_node("Cast", ["x"], ["floats"], to=TensorProto.FLOAT),
        helper.make_node("Flatten", ["floats"], ["flat"]),
        helper.make_node("MatMul", ["flat", "w"], ["z"]),
        helper.make_node(end or "Identity", ["z"], ["y"]),
    ]
    if end == "hidden":  # a softmax that no graph search would find
        nodes[-1:] = [
            helper.make_node("Exp", ["z"], ["e"]),
            helper.make_node("ReduceSum", ["e", "axes"], ["s"]),
            helper.make_node("Div", ["e", "s"], ["y"]),
        ]
    graph = helper.make_graph(
        nodes,
        "linear",
        [helper.make_tensor_value_info(f"x{n or ''}", dtype, [batch, *shape]) for n in range(inputs)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [batch, classes])],
        [numpy_helper.from_array(matrix * 0.1, "w"), numpy_helper.from_array(np.array([1]), "axes")],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=10), path)
    return matrix * np.float32(0.1)


def test_a_linked_file_has_the_record_that_lies_beside_the_real_one(tmp_path):
    (tmp_path / "real").mkdir()
    save_linear(tmp_path / "real" / "box.onnx")
    record = inspect(tmp_path / "real" / "box.onnx").model_copy(update={"preprocessing": Preprocessing(scale=0.0625)})
    save_artifact(tmp_path / "real", record)
    (tmp_path / "box.onnx").symlink_to(tmp_path / "real" / "box.onnx")
    found = black_box.load(Wanted(model="box.onnx", options={}, input_shape=(1, 8, 8), classes=10, folder=tmp_path))
    assert found.preprocessing == record.preprocessing


def test_a_link_into_a_store_by_hash_keeps_its_own_name(tmp_path):
    (tmp_path / "blobs").mkdir()
    (tmp_path / "blobs" / "6e340b9c").write_text("")
    for name, target in (("teacher.safetensors", "6e340b9c"), ("mine.py", "6e340b9c")):
        (tmp_path / name).symlink_to(tmp_path / "blobs" / target)
    section = Teacher(model="mlp", weights="teacher.safetensors")
    assert weights_file(section, tmp_path).suffix == ".safetensors"
    assert source("mine.py:network", tmp_path, "model").suffix == ".py"


def test_probabilities_that_are_rounded_to_0_or_1_have_finite_logits(tmp_path):
    save_linear(tmp_path / "box.onnx", "Sigmoid", classes=3)
    x = torch.tensor([-500.0, -1, 0, 1, 500])[:, None, None, None].expand(-1, 1, 8, 8)
    with BlackBox(tmp_path / "box.onnx", inspect(tmp_path / "box.onnx"), "sigmoid", Options()) as box:
        assert {0.0, 1.0} <= set(box.raw(x).flatten().tolist())
        torch.testing.assert_close(torch.sigmoid(box(x)), torch.from_numpy(box.raw(x)), atol=1e-6, rtol=1e-6)
        assert box(x).abs().max() < 30


def test_the_more_samples_a_black_box_is_given_the_longer_it_may_take(tmp_path):
    (tmp_path / "slow.json").write_text('{"latency_s": 0.5}')
    known = SimpleNamespace(inputs=[TensorSpec(name="x", dtype="float32", shape=("n", 4))])
    worker = Worker(pick_backend("fake"), 1)
    with BlackBox(tmp_path / "slow.json", known, "logits", Options(), worker) as box:
        worker.load(box.file)
        worker.patience_s = 0.1
        assert box(torch.zeros(5, 4)).shape == (5, 2)


def black(more="", options=""):
    return f'source = "onnx"\nmodel = "box.onnx"\noptions = {{ {options} }}\n{more}'


@pytest.mark.parametrize(
    ("end", "options", "kind"),
    [
        (None, "", "logits"),
        ("Softmax", "", "softmax"),
        ("hidden", "", "softmax"),
        ("Sigmoid", "", "sigmoid"),
        ("hidden", 'outputs = "probabilities"', "softmax"),
        ("Softmax", 'outputs = "logits"', "logits"),
    ],
)
def test_what_a_black_box_answers_is_recognised(end, options, kind, digits, tmp_path):
    matrix = save_linear(tmp_path / "box.onnx", end)
    path = made(black(options=options), tmp_path, digits)
    assert path.name == "teacher.onnx"
    assert path.read_bytes() == (tmp_path / "box.onnx").read_bytes()
    assert known_artifact(path).options["outputs"] == kind
    x = torch.rand(7, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    expected = torch.from_numpy(x.flatten(1).numpy() @ matrix)
    with at_work(path, tmp_path) as teaching:
        found = teaching.observe(x).logits
    if kind == "sigmoid" or (kind == "logits" and end is None):
        torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)
    elif kind == "softmax":
        torch.testing.assert_close(found.softmax(1), expected.softmax(1), atol=1e-5, rtol=1e-5)
    else:
        torch.testing.assert_close(found, expected.softmax(1))


def test_a_fixed_batch_is_split_and_filled_up(digits, tmp_path):
    matrix = save_linear(tmp_path / "box.onnx", batch=4)
    with at_work(made(black(), tmp_path, digits), tmp_path) as teaching:
        for samples in (1, 4, 6):
            x = torch.rand(samples, 1, 8, 8)
            expected = torch.from_numpy(x.flatten(1).numpy() @ matrix)
            torch.testing.assert_close(teaching.observe(x).logits, expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    ("file", "more", "message"),
    [
        ({"classes": 7}, "", "teacher: answers 7 classes (0, 1, 2, …), the data has 10"),
        ({"inputs": 2}, "", "box.onnx: has 2 inputs (x, x1): a teacher should have one, the samples"),
        ({"shape": (3, 8, 8)}, "", "its input 'x' takes samples of shape (3, 8, 8), the data's are (1, 8, 8)"),
        ({"dtype": TensorProto.INT32}, "", "its input 'x' takes int32, the data is float32"),
        ({}, TRAINING, "teacher.training: an ONNX file is a black box, which is taken as it is: leave it out"),
        ({}, "new_head = true\n", "teacher.new_head: an ONNX file is a black box"),
        ({}, 'weights = "a.pth"\n', "teacher.weights: an ONNX file is a black box"),
    ],
)
def test_black_boxes_that_cannot_teach_are_named(file, more, message, digits, tmp_path):
    save_linear(tmp_path / "box.onnx", **file)
    assert message in refused(black(more), tmp_path, digits)


def test_more_mistakes_with_black_boxes(digits, tmp_path):
    assert "teacher.model: no file 'box.onnx' beside the recipe" in refused(black(), tmp_path, digits)
    (tmp_path / "box.onnx").write_text("hello")
    assert "box.onnx: not an ONNX model" in refused(black(), tmp_path, digits)
    save_linear(tmp_path / "box.onnx")
    assert "unknown backend 'cuba'" in refused(black(options='backend = "cuba"'), tmp_path, digits)
    said = refused(black(options='outputs = "probabilities"'), tmp_path, digits)
    assert "box.onnx: its answers are said to be probabilities, but reach from -" in said
    assert "'outputs' should be 'logits' or 'prob" in refused(black(options='outputs = "x"'), tmp_path, digits)
    features = RECIPE.replace("kd = 1.0", 'hint = { pairs = [["stages.0", "stages.0"]] }')
    said = refused(black(), tmp_path, digits, features)
    assert "distill.losses.hint: needs features of the teacher, and 'teacher.onnx' is a black box" in said


def test_the_worker_of_a_black_box_ends_with_its_work_also_by_an_error(digits, tmp_path):
    save_linear(tmp_path / "box.onnx")
    path = made(black(), tmp_path, digits)
    for error in (None, KeyboardInterrupt):
        try:
            with at_work(path, tmp_path) as teaching:
                teaching.observe(torch.zeros(2, 1, 8, 8))
                process = teaching.model.worker._process
                assert process.poll() is None
                if error:
                    raise error
        except KeyboardInterrupt:
            pass
        assert process.poll() is not None
        assert teaching.model.worker is None


@pytest.mark.parametrize("end", [None, "Softmax"])
@pytest.mark.parametrize("merged", [False, True])
def test_a_class_map_stands_behind_the_graph_of_a_black_box(end, merged, digits, tmp_path):
    dataset = named(digits)
    matrix = save_linear(tmp_path / "box.onnx", end, classes=11)
    own = [*reversed(dataset.classes), "more"]
    mapping = {name: name for name in dataset.classes} | ({"more": "nine"} if merged else {})
    fields = f"classes = {json.dumps(own)}\nclass_map = {table(mapping)}\n"
    path = made(black(fields), tmp_path, dataset)
    x = torch.rand(5, 1, 8, 8)
    logits = torch.from_numpy(x.flatten(1).numpy() @ matrix)
    expected = logits[:, :10].flip(1)
    if merged:
        expected[:, 9] = torch.logsumexp(logits[:, [0, 10]], dim=1)
    with at_work(path, tmp_path) as teaching:
        found = teaching.observe(x).logits
    torch.testing.assert_close(found.softmax(1), expected.softmax(1), atol=1e-5, rtol=1e-4)
    assert known_artifact(path).classes == dataset.classes
    (answered,) = answer(path, {"x": x.numpy()}, 5).outputs.values()
    assert answered.argmax(1).tolist() == expected.argmax(1).tolist()


def test_a_black_boxs_own_record_tells_classes_and_preprocessing(digits, tmp_path):
    dataset = named(digits)
    matrix = save_linear(tmp_path / "box.onnx")
    own = Preprocessing(scale=0.5)
    recorded = inspect(tmp_path / "box.onnx", classes=dataset.classes[::-1], preprocessing=own)
    save_artifact(tmp_path, recorded)
    path = made(black(), tmp_path, dataset)
    artifact: Artifact = known_artifact(path)
    assert (artifact.classes, artifact.preprocessing) == (dataset.classes, own)
    save_pack(tmp_path / "pack.npz", dataset, 8, 0)
    expected = ((dataset.x_test * 0.5).reshape(len(dataset.x_test), -1) @ matrix)[:, ::-1].argmax(1)
    assert evaluate(path, tmp_path / "pack.npz").correct == np.sum(expected == dataset.y_test)


def test_a_black_box_has_all_rungs_but_those_that_cannot_be(digits, tmp_path):
    from kdbench import pipeline
    from kdbench.pipeline.rungs import compressed
    from kdbench.progress import silent

    save_linear(tmp_path / "box.onnx", "Softmax")
    text = RECIPE.replace('"digits"', '"digits"\noptions = { test_samples = 1500 }').replace("resnet", "mlp")
    read = recipe(black(), tmp_path, text.replace("{ widths = [4], blocks = [1] }", "{ widths = [16] }"))
    artifacts = pipeline.distill(read, tmp_path / "run")
    assert artifacts["student"].parent_sha256 == artifacts["teacher"].sha256
    run, said = RunFolder(tmp_path / "run"), []
    compressed(run, read.quantize, "teacher", silent, said.append)
    assert known_artifact(run.onnx("teacher-int8")).precision == "int8"
    assert said == []
    int8 = tmp_path / "box.onnx"
    int8.write_bytes(run.onnx("teacher-int8").read_bytes())
    pipeline.distill(read, run.path)
    compressed(run, read.quantize, "teacher", silent, said.append)
    assert len(said) == 1
    assert "no rung teacher-int8" in said[0]
    assert "is quantized already" in said[0]
    assert not run.onnx("teacher-int8").exists()
    assert "student-int8" in {subject.artifact.rung for subject in pipeline.run_subjects(run)}


def test_teaching_otherwise_is_a_reason_to_distil_again(digits, tmp_path):
    save_linear(tmp_path / "box.onnx", "Softmax")
    found = set()
    for more, options in (("", ""), (OWN, ""), ("", 'outputs = "logits"'), ("", "")):
        read = recipe(black(more, options), tmp_path)
        path = made(black(more, options), tmp_path, digits)
        student = train.distill(RunFolder(tmp_path / "run"), "student", [path], Lesson(read, digits, ""))
        found.add(weights.load(student)[1].fingerprint)
    assert len(found) == 3


def test_parity_shows_each_model_what_it_wants_to_see(digits, tmp_path):
    save_pack(tmp_path / "pack.npz", digits, 64, 0)
    for name, seen in (("one", Preprocessing(scale=0.5)), ("other", None)):
        save_linear(tmp_path / f"{name}.onnx")
        save_artifact(tmp_path, inspect(tmp_path / f"{name}.onnx", preprocessing=seen))
    files = [tmp_path / f"{name}.onnx" for name in ("one", "other")]
    apart = parity(*files, pack=tmp_path / "pack.npz")
    save_artifact(tmp_path, inspect(files[1], preprocessing=Preprocessing(scale=0.5)))
    assert parity(*files, pack=tmp_path / "pack.npz").largest_difference == 0.0 < apart.largest_difference


def test_calibration_comparison_and_timing_feed_a_model_by_its_own_preprocessing(digits, tmp_path):
    save_pack(tmp_path / "pack.npz", digits, 64, 0)
    pack = load_pack(tmp_path / "pack.npz")
    save_linear(tmp_path / "box.onnx")
    artifact = inspect(tmp_path / "box.onnx", preprocessing=Preprocessing(scale=0.5))
    subject = Subject(artifact, tmp_path / "box.onnx")
    timed = inputs(Cell(subject, pick_backend("cpu"), 1, 3), pack)["x"]
    np.testing.assert_array_equal(timed, digits.x_test[:3] * np.float32(0.5))
    compared, _ = comparison_inputs(artifact, pack, {})
    np.testing.assert_array_equal(compared["x"], pack.x_calibration * np.float32(0.5))
