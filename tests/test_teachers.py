"""Teachers from anywhere: their weights, heads, classes and preprocessing, and what is said where they don't fit."""

import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import safetensors.torch
import torch
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from kdbench import data, evaluate, parity
from kdbench.benchmark.cells import Cell, Subject, inputs
from kdbench.data.pack import load_pack, save_pack
from kdbench.errors import UserError
from kdbench.evaluation import answer
from kdbench.models import build
from kdbench.onnxfile import inspect, known_artifact
from kdbench.records import Artifact, Data, Preprocessing, recipe_from_toml
from kdbench.steps import train
from kdbench.steps.export import export
from kdbench.steps.slim import comparison_inputs
from kdbench.steps.teach import at_work, teach
from kdbench.store import RunFolder, save_artifact
from kdbench.teachers import TEACHERS, heads, state
from kdbench.teachers.classes import ClassMap, class_map
from kdbench.training import weights
from tests.conftest import REPOSITORY

SMALL = 'model = "resnet"\noptions = { widths = [4, 8], blocks = [1, 1] }\n'
RECIPE = """
name = "mine"
[data]
source = "digits"
[student]
model = "resnet"
options = { widths = [4], blocks = [1] }
training = { epochs = 1, learning_rate = 0.01 }
[distill]
losses = { kd = 1.0 }
[teacher]
"""
TRAINING = "training = { epochs = 1, learning_rate = 0.02 }\n"
OWN = "preprocessing = { scale = 0.0625, mean = [0.5], std = [0.25] }\n"


def recipe(teacher, folder, text=RECIPE):
    return recipe_from_toml(text + teacher, "recipe").placed(folder)


@pytest.fixture(scope="module")
def digits():
    """A part of the digits, so that an epoch takes no time."""
    found = data.load(Data(source="digits"))
    return replace(found, x_train=found.x_train[:256], y_train=found.y_train[:256])


def network(classes=10, seed=0):
    torch.manual_seed(seed)
    return build("resnet", {"widths": [4, 8], "blocks": [1, 1]}, (1, 8, 8), classes).eval()


def made(teacher, folder, dataset):
    """The teacher's file of a recipe."""
    read = recipe(teacher, folder)
    (folder / "run").mkdir(exist_ok=True)
    return teach(RunFolder(folder / "run"), "teacher", read.teachers[0], read, dataset, "")


def refused(teacher, folder, dataset, text=RECIPE):
    """What is said of it before any training."""
    with pytest.raises(UserError) as caught:
        train.check(recipe(teacher, folder, text), dataset)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# --- state_dicts ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("nested", [(), ("state_dict",), ("model",), ("model_state_dict",), ("state_dict", "model")])
@pytest.mark.parametrize("prefix", ["", "module.", "module._orig_mod.", "_orig_mod.module."])
def test_a_state_dict_is_found_however_it_was_wrapped(nested, prefix, tmp_path):
    tensors = network().state_dict()
    wrapped = {prefix + name: tensor for name, tensor in tensors.items()}
    for key in nested:
        wrapped = {"epoch": 3, key: wrapped}
    torch.save(wrapped, tmp_path / "model.pth")
    found = state.read(tmp_path / "model.pth")
    assert found.keys() == tensors.keys()
    assert all(torch.equal(found[name], tensors[name]) for name in tensors)


def test_a_teacher_is_what_its_weights_file_says(digits, tmp_path):
    model = network(seed=3)
    torch.save({"state_dict": model.state_dict()}, tmp_path / "a.th")
    safetensors.torch.save_file(model.state_dict(), tmp_path / "a.safetensors")
    for name in ("a.th", "a.safetensors"):
        path = made(SMALL + f'weights = "{name}"\n', tmp_path, digits)
        assert weights.load(path)[1].epoch == 0
        with at_work(path, tmp_path) as teaching:
            x = torch.rand(3, 1, 8, 8)
            torch.testing.assert_close(teaching.observe(x).logits, model(x))


def test_weights_that_do_not_fit_are_counted_and_named(digits, tmp_path):
    tensors = network().state_dict()
    del tensors["stages.0.0.conv1.weight"]
    tensors |= {f"extra.{number}": torch.zeros(1) for number in range(5)}
    tensors["stem.0.weight"] = torch.zeros(4, 3, 3, 3)
    torch.save(tensors, tmp_path / "a.pth")
    said = refused(SMALL + 'weights = "a.pth"\n', tmp_path, digits)
    assert "a.pth: does not fit the model: 1 tensor missing (stages.0.0.conv1.weight), 5 tensors unexpected " in said
    assert (
        "(extra.0, extra.1, extra.2, …), 1 tensor of another shape (stem.0.weight); (4, 3, 3, 3) for (4, 1, 3, 3)"
        in said
    )
    assert "give teacher.options as it was trained with" in said
    torch.save({k: v for k, v in network().state_dict().items() if "head" not in k}, tmp_path / "a.pth")
    said = refused(SMALL + 'weights = "a.pth"\n', tmp_path, digits)
    assert "2 tensors missing (head.weight, head.bias): only the head's: set teacher.new_head = true and give" in said


class Payload:
    def __reduce__(self):
        return (Path.touch, (Path("executed"),))


def test_a_pickle_that_could_run_code_is_refused_and_not_run(digits, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"state_dict": {"a": torch.zeros(1)}, "more": Payload()}, "evil.pth")
    torch.save(network(), "whole.pth")
    for name in ("evil.pth", "whole.pth"):
        said = refused(SMALL + f'weights = "{name}"\n', tmp_path, digits)
        assert "a pickle that is not plain weights: refused" in said
    assert not Path("executed").exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "not a readable torch file"),
        (b"hello", "not a readable torch file"),
        (b"PK\x03\x04 and no more", "not a readable torch file"),
        (None, "no file 'a.pth' beside the recipe or in the working directory"),
        ([1, 2], "holds no state_dict: save model.state_dict()"),
        ({"epoch": 3}, "holds no state_dict"),
        ({"state_dict": {}}, "holds no state_dict"),
    ],
)
def test_files_that_hold_no_weights_are_named(content, message, digits, tmp_path):
    if isinstance(content, bytes):
        (tmp_path / "a.pth").write_bytes(content)
    elif content is not None:
        torch.save(content, tmp_path / "a.pth")
    assert message in refused(SMALL + 'weights = "a.pth"\n', tmp_path, digits)


def test_a_cut_off_file_of_either_format_is_named(digits, tmp_path):
    torch.save(network().state_dict(), tmp_path / "a.pth")
    safetensors.torch.save_file(network().state_dict(), tmp_path / "a.safetensors")
    for name, message in (("a.pth", "not a readable torch file"), ("a.safetensors", "not a readable safetensors")):
        path = tmp_path / name
        path.write_bytes(path.read_bytes()[:-900])
        assert message in refused(SMALL + f'weights = "{name}"\n', tmp_path, digits)


def test_public_weights_in_the_naming_of_their_authors(shared_data, tmp_path):
    rows = np.load(shared_data / "cifar10" / "test-labels.npy")[:200].astype(np.int64)
    from PIL import Image

    sheet = np.asarray(Image.open(shared_data / "cifar10" / "test.webp").convert("RGB"))[: 2 * 32]
    images = sheet.reshape(2, 32, 100, 32, 3).transpose(0, 2, 4, 1, 3).reshape(200, 3, 32, 32)
    names = tuple(str(number) for number in range(10))
    dataset = data.Dataset(images, rows, images, rows, names, Preprocessing(scale=1 / 255))
    path = made(
        'model = "resnet"\noptions = { depth = 20, shortcut = "pad" }\n'
        f'weights = "{shared_data / "weights" / "resnet20-12fca82f.th"}"\n'
        f"preprocessing = {{ scale = {1 / 255}, mean = [0.485, 0.456, 0.406], std = [0.229, 0.224, 0.225] }}\n",
        tmp_path,
        dataset,
    )
    with at_work(path, tmp_path) as teaching, torch.no_grad():
        theirs = teaching.sees(images, torch.zeros(1), dataset.preprocessing)
        assert np.mean(teaching.observe(theirs).logits.argmax(1).numpy() == rows) > 0.88


# --- classes ----------------------------------------------------------------------------------------------------------


@given(st.permutations(["cat", "dog", "owl", "bee"]))
def test_the_same_names_in_another_order_are_put_in_order(own):
    found = class_map(own, ("cat", "dog", "owl", "bee"), {})
    logits = torch.tensor([[float(("cat", "dog", "owl", "bee").index(name)) for name in own]])
    assert found(logits).tolist() == [[0.0, 1.0, 2.0, 3.0]]
    assert found.identity == (own == ["cat", "dog", "owl", "bee"])


def test_numbers_are_no_names():
    for own, theirs in ((("1", "0"), ("a", "b")), (("LABEL_0", "LABEL_1"), ("b", "a")), (("b", "a"), ("0", "1"))):
        assert class_map(own, theirs, {}).identity


def test_several_classes_may_be_one_and_others_nothing():
    mapping = {"tabby": "cat", "siamese": "cat", "poodle": "dog"}
    found = class_map(("poodle", "car", "tabby", "siamese"), ("bird", "cat", "dog"), mapping)
    assert (found.known, found.groups) == ((1, 2), ((2, 3), (0,)))
    logits = torch.tensor([[1.0, 50.0, 2.0, 3.0]])
    expected = torch.tensor([[np.log(np.exp(2.0) + np.exp(3.0)), 1.0]])
    torch.testing.assert_close(found(logits), expected.float())


@pytest.mark.parametrize(
    ("own", "mapping", "message"),
    [
        (("a", "b", "c"), {}, r"teacher: answers 3 classes \(a, b, c\), the data has 2 \(a, b\): map them in"),
        (("a", "x"), {}, r"teacher: answers 2 classes \(a, x\), the data has 2 \(a, b\): map them in"),
        (("a", "b"), {"aa": "a"}, "teacher.class_map: the teacher has no class 'aa': did you mean 'a'"),
        (("a", "b"), {"a": "bb"}, "teacher.class_map: the data has no class 'bb': did you mean 'b'"),
    ],
)
def test_classes_that_do_not_meet_are_named(own, mapping, message):
    with pytest.raises(UserError, match=message):
        class_map(own, ("a", "b"), mapping)


def table(mapping):
    return "{ " + ", ".join(f'{name} = "{meant}"' for name, meant in mapping.items()) + " }"


def named(digits):
    return replace(digits, classes=("nil", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"))


def test_a_map_is_part_of_the_exported_file_and_of_teaching(digits, tmp_path):
    dataset = named(digits)
    torch.save(network(12).state_dict(), tmp_path / "a.pth")
    own = [*reversed(dataset.classes), "ten", "nought"]
    mapping = {name: name for name in dataset.classes} | {"nought": "nil"}
    fields = f"classes = {json.dumps(own)}\nclass_map = {table(mapping)}\n"
    path = made(SMALL + 'weights = "a.pth"\n' + fields, tmp_path, dataset)
    save_pack(tmp_path / "pack.npz", dataset, 8, 0)
    artifact = export(path, tmp_path / "a.onnx", tmp_path / "pack.npz")
    assert artifact.classes == dataset.classes
    x = np.random.default_rng(0).standard_normal((5, 1, 8, 8), np.float32)
    with torch.no_grad():
        raw = network(12)(torch.from_numpy(x))
        expected = raw[:, :10].flip(1)
        expected[:, 0] = torch.logsumexp(raw[:, [9, 11]], dim=1)
        with at_work(path, tmp_path) as teaching:
            torch.testing.assert_close(teaching.observe(torch.from_numpy(x)).logits, expected)
    (found,) = answer(tmp_path / "a.onnx", {"input": x}, 5).outputs.values()
    np.testing.assert_allclose(found, expected.numpy(), atol=1e-5)


def test_other_classes_without_a_map_are_refused(digits, tmp_path):
    torch.save(network(7).state_dict(), tmp_path / "a.pth")
    said = refused(SMALL + 'weights = "a.pth"\n', tmp_path, digits)
    assert (
        "teacher: answers 7 classes (0, 1, 2, …), the data has 10 (0, 1, 2, …): map them in teacher.class_map" in said
    )
    said = refused(SMALL + 'weights = "a.pth"\nclasses = ["a", "b"]\n', tmp_path, digits)
    assert "a.pth: does not fit the model: 2 tensors of another shape (head.weight, head.bias)" in said


# --- new heads --------------------------------------------------------------------------------------------------------


def test_a_new_head_learns_the_datas_classes_on_a_loaded_backbone(digits, tmp_path):
    torch.save(network(7).state_dict(), tmp_path / "a.pth")
    slow = "training = { epochs = 1, learning_rate = 1e-12, weight_decay = 0.0 }\n"
    path = made(SMALL + 'weights = "a.pth"\nnew_head = true\n' + slow, tmp_path, digits)
    tensors, trained = weights.load(path)
    assert tensors["head.weight"].shape == (10, 8)
    assert trained.epoch == 1
    for name, tensor in network(7).state_dict().items():
        if "head" not in name and name.endswith("weight"):
            torch.testing.assert_close(tensors[name], tensor)
    fast = SMALL + 'weights = "a.pth"\nnew_head = true\n' + TRAINING
    trained = weights.load(made(fast, tmp_path, digits))
    assert not torch.allclose(trained[0]["stem.0.weight"], tensors["stem.0.weight"])  # all layers learn
    said = refused(SMALL + 'weights = "a.pth"\nnew_head = true\n', tmp_path, digits)
    assert said == "teacher.training: is missing: add it: a new head knows nothing before it is trained"


@pytest.mark.parametrize("kind", ["linear", "convolution"])
def test_the_last_layer_of_so_many_outputs_is_the_head(kind):
    last = nn.Linear(6, 5, bias=False) if kind == "linear" else nn.Conv2d(6, 5, 1)
    model = nn.Sequential(nn.Linear(5, 5), nn.Sequential(last, nn.Dropout()), nn.Linear(5, 3))
    assert heads.classifier(model, 5) == "1.0"
    heads.replace(model, 5, 9, "teacher")
    assert model[1][0].weight.shape[:2] == (9, 6)
    assert type(model[1][0]) is type(last)
    assert (model[1][0].bias is None) == (last.bias is None)
    with pytest.raises(UserError, match=r"teacher\.new_head: the model has no linear layer of 8 outputs"):
        heads.replace(model, 8, 9, "teacher")


# --- preprocessing ----------------------------------------------------------------------------------------------------


def test_a_teacher_of_other_preprocessing_is_trained_shown_and_judged_under_its_own(digits, tmp_path):
    other = weights.load(made(SMALL + TRAINING, tmp_path, digits))[0]
    path = made(SMALL + TRAINING + OWN, tmp_path, digits)
    own = Preprocessing(scale=0.0625, mean=(0.5,), std=(0.25,))
    tensors, trained = weights.load(path)
    assert trained.preprocessing == own
    assert not torch.equal(tensors["head.bias"], other["head.bias"])
    save_pack(tmp_path / "pack.npz", digits, 64, 0)
    export(path, tmp_path / "teacher.onnx", tmp_path / "pack.npz")
    seen = (digits.x_test.astype(np.float32) * 0.0625 - 0.5) / 0.25
    with torch.no_grad():
        expected = weights.model_of(path)[0](torch.from_numpy(seen)).argmax(1).numpy()
    assert evaluate(tmp_path / "teacher.onnx", tmp_path / "pack.npz").correct == np.sum(expected == digits.y_test)
    with at_work(path, tmp_path) as teaching:
        x = torch.zeros(2, 1, 8, 8)
        np.testing.assert_allclose(teaching.sees(digits.x_test[:2], x, digits.preprocessing), seen[:2], rtol=1e-6)
        assert teaching.sees(digits.x_test[:2], x, own) is x
    pack = load_pack(tmp_path / "pack.npz")
    fed = pack.test_inputs(inspect(tmp_path / "teacher.onnx").inputs, own)["input"]
    np.testing.assert_allclose(fed, seen, rtol=1e-6)
    plain = replace(pack, preprocessing=None, x_test=seen)  # preprocessed already
    np.testing.assert_array_equal(plain.test_inputs(inspect(tmp_path / "teacher.onnx").inputs, own)["input"], seen)


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
    timed = inputs(Cell(subject, "cpu", 1, 3), pack, {})["x"]
    np.testing.assert_array_equal(timed, digits.x_test[:3] * np.float32(0.5))
    compared, _ = comparison_inputs(artifact, pack, {})
    np.testing.assert_array_equal(compared["x"], pack.x_calibration * np.float32(0.5))


def test_grey_images_become_as_many_channels_as_the_teachers_preprocessing_has(digits, tmp_path):
    three = "preprocessing = { scale = 0.0625, mean = [0.4, 0.5, 0.6], std = [0.2, 0.2, 0.2] }\n"
    path = made(SMALL + TRAINING + three, tmp_path, digits)
    assert weights.load(path)[1].input_shape == (3, 8, 8)
    train.check(recipe(SMALL + TRAINING + three, tmp_path), digits)
    coloured = replace(
        digits, **{f"x_{part}": np.repeat(getattr(digits, f"x_{part}"), 4, 1) for part in ("train", "test")}
    )
    said = refused(SMALL + TRAINING + three, tmp_path, replace(coloured, preprocessing=Preprocessing()))
    assert said == (
        "teacher.preprocessing: mean and std should have one entry, or as many as the data has channels (4), not 3 "
        "and 3"
    )


# --- the user's own ---------------------------------------------------------------------------------------------------

CODE = """
from torch import nn

def flat(input_shape, classes, width: int = 4):
    size = 1
    for part in input_shape:
        size *= part
    return nn.Sequential(nn.Flatten(), nn.Linear(size, width), nn.Linear(width, classes))

def broken(classes):
    raise KeyError("layer")

def number(classes):
    return 3

def three(classes):
    return nn.Flatten(2)

def leaves(classes):
    raise SystemExit(3)

class Nothing(nn.Module):
    def forward(self, x):
        return x.flatten(1)[:, :10] * float("nan")

def nothing(classes):
    return Nothing()
"""


def test_a_users_own_models_teach_and_learn(digits, tmp_path):
    (tmp_path / "mine.py").write_text(CODE)
    text = RECIPE.replace('model = "resnet"\noptions = { widths = [4], blocks = [1] }', 'model = "mine.py:flat"')
    read = recipe('model = "mine.py:flat"\noptions = { width = 6 }\n' + TRAINING, tmp_path, text)
    train.check(read, digits)
    run = RunFolder(tmp_path)
    teacher = teach(run, "teacher", read.teachers[0], read, digits, "")
    student = train.distill(run, "student", [teacher], read, digits, "")
    assert weights.load(student)[0]["1.weight"].shape == (4, 64)
    assert weights.load(teacher)[0]["1.weight"].shape == (6, 64)
    with pytest.raises(UserError, match=r"its model 'mine\.py:flat' is code of your own: say in which folder it lies"):
        export(student, tmp_path / "student.onnx")
    before = weights.load(student)[1].fingerprint
    (tmp_path / "mine.py").write_text(CODE + "\n# changed\n")
    assert weights.load(train.distill(run, "student", [teacher], read, digits, ""))[1].fingerprint != before
    artifact = export(student, tmp_path / "student.onnx", code=tmp_path)
    assert artifact.outputs[0].shape == ("batch", 10)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ("mine.py:flta", "teacher.model 'mine.py:flta': no function 'flta' in"),
        ("other.py:flat", "teacher.model 'other.py:flat': no file 'other.py' beside the recipe"),
        ("mine.py:broken", "teacher: 'mine.py:broken' fails with KeyError: 'layer'"),
        ("mine.py:leaves", "teacher: 'mine.py:leaves' fails with SystemExit: 3"),
        ("mine.py:nothing", "teacher: mine.py:nothing answers NaN or infinity: are its weights"),
        ("mine.py:number", "teacher: 'mine.py:number' should give a torch.nn.Module, not int"),
        ("mine.py:three", "teacher: mine.py:three should give logits [N, classes] for N samples, not Tensor of shape"),
        ('mine.py:flat"\noptions = { depth = 2 }\n#', "teacher.options: unknown key 'depth': "),
        ("mine.py:flat\"\noptions = { width = 'x' }\n#", "teacher.options.width: Input should be a valid integer"),
    ],
)
def test_mistakes_in_own_models_are_named(model, message, digits, tmp_path):
    (tmp_path / "mine.py").write_text(CODE)
    assert message in refused(f'model = "{model}"\n', tmp_path, digits)


# --- ONNX files -------------------------------------------------------------------------------------------------------


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
        student = train.distill(RunFolder(tmp_path / "run"), "student", [path], read, digits, "")
        found.add(weights.load(student)[1].fingerprint)
    assert len(found) == 3


# --- sources ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("teacher", "message"),
    [
        ('source = "hubb"\nmodel = "x"\n', "unknown teacher.source 'hubb': known: huggingface, onnx, timm"),
        (SMALL, "teacher.training: is missing: add it, or give teacher.weights"),
        (SMALL + 'weights = "none.pth"\n', "teacher.weights: no file 'none.pth' beside the recipe"),
        (SMALL + TRAINING + 'classes = ["a"]\n', "teacher: answers 1 classes (a), the data has 10"),
        (
            SMALL + TRAINING + 'class_map = { 1 = "0", 0 = "1" }\n',
            "teacher.training: the teacher's classes are not",
        ),
    ],
)
def test_mistakes_in_the_section_are_named(teacher, message, digits, tmp_path):
    assert message in refused(teacher, tmp_path, digits)


@pytest.mark.parametrize("package", ["torchvision", "timm", "transformers"])
def test_an_absent_package_says_what_to_install(package, digits, tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, package, None)
    source = {"transformers": "huggingface"}.get(package, package)
    said = refused(f'source = "{source}"\nmodel = "x"\n', tmp_path, digits)
    assert said == f"teacher.source needs {package}, and {package} is not installed: pip install {package}"


def imported(package):
    """The package, or a skip with the reason: built for another torch it is there, but of no use."""
    try:
        return __import__(package)
    except Exception as error:
        pytest.skip(f"{package} can't be imported here: {type(error).__name__}: {error}")


@pytest.mark.filterwarnings("ignore")
def test_torchvision_with_weights_of_a_file_and_with_a_new_head(digits, tmp_path):
    models = imported("torchvision").models
    fields = 'source = "torchvision"\nmodel = "squeezenet1_1"\nweights = "a.pth"\noptions = { image_size_px = 32 }\n'
    ours = models.get_model("squeezenet1_1", num_classes=10).eval()
    torch.save({"state_dict": {f"module.{k}": v for k, v in ours.state_dict().items()}}, tmp_path / "a.pth")
    with at_work(made(fields, tmp_path, digits), tmp_path) as teaching:
        x = teaching.sees(digits.x_test[:2], torch.zeros(1), digits.preprocessing)
        assert x.shape == (2, 3, 8, 8)
        scaled = nn.functional.interpolate(x, (32, 32), mode="bilinear", align_corners=False)
        torch.testing.assert_close(teaching.observe(x).logits, ours(scaled))
    other = models.get_model("squeezenet1_1", num_classes=3)
    torch.save(other.state_dict(), tmp_path / "a.pth")
    assert "teacher: answers 3 classes" in refused(fields, tmp_path, digits)
    path = made(fields + "new_head = true\n" + TRAINING, tmp_path, digits)
    assert weights.model_of(path)[0](x).shape == (2, 10)
    said = refused('source = "torchvision"\nmodel = "resnet81"\n', tmp_path, digits)
    assert said == "teacher.model: torchvision has no 'resnet81': did you mean 'resnet18'?"


@pytest.mark.filterwarnings("ignore")
def test_timm_from_a_local_folder(digits, tmp_path):
    timm = imported("timm")
    ours = timm.create_model("resnet10t", num_classes=10).eval()
    timm.models.save_for_hf(ours, str(tmp_path / "local"), safe_serialization=True)
    fields = 'source = "timm"\nmodel = "local"\noptions = { image_size_px = 32 }\n'
    with at_work(made(fields, tmp_path, digits), tmp_path) as teaching:
        x = teaching.sees(digits.x_test[:2], torch.zeros(1), digits.preprocessing)
        scaled = nn.functional.interpolate(x, (32, 32), mode="bilinear", align_corners=False)
        torch.testing.assert_close(teaching.observe(x).logits, ours(scaled))
    assert "cannot be loaded" in refused(fields.replace("local", "resnet10tt"), tmp_path, digits)


@pytest.fixture
def transformers():
    found = imported("transformers")
    found.logging.disable_progress_bar()
    return found


@pytest.mark.filterwarnings("ignore")
def test_a_vision_model_of_transformers_in_a_local_folder(transformers, digits, tmp_path):
    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    config = transformers.ViTConfig(image_size=8, patch_size=4, num_channels=1, num_labels=12, **sizes)
    ours = transformers.ViTForImageClassification(config).eval()
    ours.save_pretrained(tmp_path / "vit")
    seen = {"do_normalize": True, "image_mean": [0.5], "image_std": [0.25]}
    (tmp_path / "vit" / "preprocessor_config.json").write_text(json.dumps(seen))
    fields = 'source = "huggingface"\nmodel = "vit"\n'
    assert "teacher: answers 12 classes (LABEL_0, LABEL_1, LABEL_2, …), the data has 10" in refused(
        fields, tmp_path, digits
    )
    mapping = f"class_map = {table({f'LABEL_{n}': str(n) for n in range(10)})}\n"
    with at_work(made(fields + mapping, tmp_path, digits), tmp_path) as teaching:
        x = teaching.sees(digits.x_test[:2], torch.zeros(1), digits.preprocessing)
        np.testing.assert_allclose(x, (digits.x_test[:2] / 16 - 0.5) / 0.25, rtol=1e-6)
        torch.testing.assert_close(teaching.observe(x).logits, ours(pixel_values=x).logits[:, :10])
    path = made(fields + "new_head = true\n" + TRAINING, tmp_path, digits)
    assert weights.load(path)[1].preprocessing == Preprocessing(scale=1 / 16, mean=(0.5,), std=(0.25,))
    assert weights.model_of(path)[0](x).shape == (2, 10)
    transformers.ViTModel(config).save_pretrained(tmp_path / "headless")
    said = refused(fields.replace("vit", "headless"), tmp_path, digits)
    assert "'headless' has no trained weights for" in said
    assert "set teacher.new_head = true" in said


WORDS = ["[UNK]", "[CLS]", "[SEP]", "good", "bad", "film", "a", "[PAD]"]
"""The token that fills up is not the first one."""


def save_tokenizer(transformers, folder):
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    unknown = {"unk_token": "[UNK]"}
    tokenizer = Tokenizer(models.WordLevel({word: number for number, word in enumerate(WORDS)}, **unknown))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 1), ("[SEP]", 2)]
    )
    filling = {"pad_token": "[PAD]"}
    transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, **unknown, **filling).save_pretrained(folder)


@pytest.mark.filterwarnings("ignore")
def test_a_text_model_of_transformers_and_a_student_on_its_tokens(transformers, tmp_path):
    folder = tmp_path / "bert"
    save_tokenizer(transformers, folder)
    config = transformers.BertConfig(
        vocab_size=8, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16,
        max_position_embeddings=8, pad_token_id=7, id2label={0: "pos", 1: "neg"}, label2id={"pos": 0, "neg": 1},
    )  # fmt: skip
    ours = transformers.BertForSequenceClassification(config).eval()
    ours.save_pretrained(folder)
    (tmp_path / "train.txt").write_text("pos a good movie\nneg bad\n" * 8)
    text = RECIPE.replace('source = "digits"', f'source = "text"\noptions = {{ {text_options(tmp_path, folder)} }}')
    text = text.replace("{ widths = [4], blocks = [1] }", "{ vocabulary = 8 }").replace("resnet", "embedding_bag")
    teacher = 'source = "huggingface"\nmodel = "bert"\n'
    read = recipe(teacher, tmp_path, text)
    dataset = data.load(read.data)
    assert dataset.x_train[:2].tolist() == [[1, 6, 3, 7, 2, 0], [1, 4, 2, 0, 0, 0]]
    assert dataset.classes == ("neg", "pos")
    train.check(read, dataset)
    path = made(teacher, tmp_path, dataset)
    ids = torch.tensor([[1, 6, 3, 0, 2, 7], [1, 4, 2, 7, 7, 7]])
    expected = ours(input_ids=ids, attention_mask=(ids != 7).long()).logits.flip(1)
    with at_work(path, tmp_path) as teaching:
        torch.testing.assert_close(teaching.observe(torch.from_numpy(dataset.x_train[:2])).logits, expected)
    content = path.read_bytes()
    assert str(tmp_path).encode() not in content
    folder.rename(tmp_path / "elsewhere")  # what was loaded once is built again without its files
    save_pack(tmp_path / "pack.npz", dataset, 8, 0)
    export(path, tmp_path / "teacher.onnx", tmp_path / "pack.npz")
    (tmp_path / "elsewhere").rename(folder)
    (found,) = answer(tmp_path / "teacher.onnx", {"input": dataset.x_train[:2]}, 2).outputs.values()
    np.testing.assert_allclose(found, expected.detach(), atol=1e-5)
    beyond = replace(dataset, x_test=dataset.x_test + 2)
    said = refused(teacher, tmp_path, beyond, text.replace("vocabulary = 8", "vocabulary = 99"))
    assert said.startswith("teacher: bert knows 8 token ids, but the data has ids up to 9: let data.options.tokenizer")
    long = replace(dataset, **{f"x_{part}": np.tile(getattr(dataset, f"x_{part}"), 3) for part in ("train", "test")})
    assert "teacher: bert can't take samples of shape (18,)" in refused(teacher, tmp_path, long, text)
    assert "teacher.preprocessing: the data's samples are token ids" in refused(teacher + OWN, tmp_path, dataset, text)


def text_options(place, folder):
    file = place / "train.txt"
    return f'train = "{file}", test = "{file}", tokenizer = "{folder}", length = 6'


def test_tokenizers_that_cannot_be_used_are_named(transformers, tmp_path):
    save_tokenizer(transformers, tmp_path)
    (tmp_path / "train.txt").write_text("a b\n")

    def said(**options):
        given = {"train": tmp_path / "train.txt", "test": tmp_path / "train.txt", "tokenizer": tmp_path, **options}
        with pytest.raises(UserError) as caught:
            data.load(Data(source="text", options={key: str(value) for key, value in given.items()} | options))
        return str(caught.value)

    assert "leaves no token of a text" in said(length=2)
    assert "no such file: data.options.tokenizer should be a tokenizer.json" in said(tokenizer=tmp_path / "none")
    (tmp_path / "bad.json").write_text("{}")
    assert "bad.json: not a tokenizer" in said(tokenizer=tmp_path / "bad.json")
    content = (tmp_path / "tokenizer.json").read_text().replace("[PAD]", "[FILL]")
    (tmp_path / "other.json").write_text(content)
    (tmp_path / "tokenizer_config.json").unlink()
    assert "other.json: says of no token that it fills up" in said(tokenizer=tmp_path / "other.json")


# --- documentation ----------------------------------------------------------------------------------------------------

DOCS = (REPOSITORY / "docs" / "teachers.md").read_text()


@pytest.mark.parametrize("block", re.findall(r"```toml\n(.*?)```", DOCS, re.DOTALL))
def test_documented_sections_are_teachers(block, tmp_path):
    text = RECIPE[: RECIPE.index("[teacher]")]
    if "[methods" in block:
        block = '[teacher]\nmodel = "mlp"\n' + block
    if "[data]" in block:
        text = text.replace('[data]\nsource = "digits"\n', "")
    for section in recipe_from_toml(text + block, "teachers.md").teachers:
        assert section.source in TEACHERS


def test_every_source_is_documented():
    assert set(re.findall(r'source = "(\w+)"', DOCS)) >= TEACHERS.keys() - {"zoo"}


def test_a_map_survives_its_record():
    found = class_map(("b", "a"), ("a", "b"), {})
    assert ClassMap.model_validate_json(found.to_json()) == found
