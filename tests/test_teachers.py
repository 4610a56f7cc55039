"""Teachers from anywhere: their heads, classes and preprocessing, and what is said where they don't fit."""

import json
import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from kdbench import evaluate
from kdbench.data.pack import load_pack, save_pack
from kdbench.errors import UserError
from kdbench.evaluation import answer
from kdbench.models import build
from kdbench.onnxfile import inspect
from kdbench.records import Preprocessing, recipe_from_toml
from kdbench.steps import check as fitting
from kdbench.steps import train
from kdbench.steps.export import export
from kdbench.steps.lesson import Lesson
from kdbench.steps.teach import at_work, teach
from kdbench.store import RunFolder
from kdbench.teachers import TEACHERS, heads
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


def network(classes=10, seed=0):
    torch.manual_seed(seed)
    return build("resnet", {"widths": [4, 8], "blocks": [1, 1]}, (1, 8, 8), classes).eval()


def made(teacher, folder, dataset):
    """The teacher's file of a recipe."""
    read = recipe(teacher, folder)
    (folder / "run").mkdir(exist_ok=True)
    return teach(RunFolder(folder / "run"), "teacher", read.teachers[0], Lesson(read, dataset, ""))


def refused(teacher, folder, dataset, text=RECIPE):
    """What is said of it before any training."""
    with pytest.raises(UserError) as caught:
        fitting.check(recipe(teacher, folder, text), dataset)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def table(mapping):
    return "{ " + ", ".join(f'{name} = "{meant}"' for name, meant in mapping.items()) + " }"


def named(digits):
    return replace(digits, classes=("nil", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"))


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


def test_a_teacher_all_of_whose_classes_are_the_datas_may_still_know_a_part(digits, tmp_path):
    torch.save(network(3).state_dict(), tmp_path / "a.pth")
    own = ("one", "two", "three")
    fields = (
        f'{SMALL}weights = "a.pth"\nclasses = {json.dumps(own)}\nclass_map = {table({name: name for name in own})}\n'
    )
    with at_work(made(fields, tmp_path, named(digits)), tmp_path) as teaching:
        assert teaching.known(10) == (1, 2, 3)
    assert "teacher.training: the teacher's classes are not the data's" in refused(
        fields + TRAINING, tmp_path, named(digits)
    )


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


def test_grey_images_become_as_many_channels_as_the_teachers_preprocessing_has(digits, tmp_path):
    three = "preprocessing = { scale = 0.0625, mean = [0.4, 0.5, 0.6], std = [0.2, 0.2, 0.2] }\n"
    path = made(SMALL + TRAINING + three, tmp_path, digits)
    assert weights.load(path)[1].input_shape == (3, 8, 8)
    fitting.check(recipe(SMALL + TRAINING + three, tmp_path), digits)
    coloured = replace(
        digits, **{f"x_{part}": np.repeat(getattr(digits, f"x_{part}"), 4, 1) for part in ("train", "test")}
    )
    said = refused(SMALL + TRAINING + three, tmp_path, replace(coloured, preprocessing=Preprocessing()))
    assert said == (
        "teacher.preprocessing: mean has 3 and std 3 values, but samples of shape (4, 8, 8) have 4 channels, their "
        "first axis: give one value, or one a channel"
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
    fitting.check(read, digits)
    run = RunFolder(tmp_path)
    teacher = teach(run, "teacher", read.teachers[0], Lesson(read, digits, ""))
    student = train.distill(run, "student", [teacher], Lesson(read, digits, ""))
    assert weights.load(student)[0]["1.weight"].shape == (4, 64)
    assert weights.load(teacher)[0]["1.weight"].shape == (6, 64)
    with pytest.raises(UserError, match=r"its model 'mine\.py:flat' is code of your own: say in which folder it lies"):
        export(student, tmp_path / "student.onnx")
    before = weights.load(student)[1].fingerprint
    (tmp_path / "mine.py").write_text(CODE + "\n# changed\n")
    assert weights.load(train.distill(run, "student", [teacher], Lesson(read, digits, "")))[1].fingerprint != before
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
