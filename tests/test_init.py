"""`kdbench init`: what a look at a teacher and data finds, and the recipe that comes of it."""

import shutil
import tomllib

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper
from PIL import Image

import kdbench
from kdbench import UserError
from kdbench.cli import cli
from kdbench.data import load
from kdbench.data.preprocess import apply
from kdbench.models import build
from kdbench.pipeline.choosing import FAMILIES, parameters, student, training
from kdbench.pipeline.looking import OWN, best_order, normalisations, same
from kdbench.records import Data, Preprocessing
from kdbench.records.writing import toml
from kdbench.store import load_recipe
from kdbench.teachers import prepare
from tests.conftest import save_mlp
from tests.test_foreign_models import save
from tests.test_hubs import WORDS, save_tokenizer

WIDTHS = {"widths": [8, 16], "blocks": [1, 1]}
NAMES = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A folder with digits.npz, bytes from 0 to 255, and a network for them that was trained on −1 … 1."""
    folder = tmp_path_factory.mktemp("trained")
    digits = load(Data(source="digits"))
    arrays = {"x_train": digits.x_train * 15, "x_test": digits.x_test * 15}
    np.savez(folder / "digits.npz", y_train=digits.y_train, y_test=digits.y_test, **arrays)
    x = torch.from_numpy(apply(arrays["x_train"], Preprocessing(scale=1 / 255, mean=(0.5,), std=(0.5,))))
    y = torch.from_numpy(digits.y_train)
    torch.manual_seed(0)
    model = build("resnet", WIDTHS, (1, 8, 8), 10)
    optimizer = torch.optim.Adam(model.parameters(), 0.01)
    for _ in range(4):
        for batch in torch.randperm(len(x)).split(64):
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(model(x[batch]), y[batch]).backward()
            optimizer.step()
    torch.save(model.eval().state_dict(), folder / "teacher.pth")
    return folder


@pytest.fixture
def here(trained, tmp_path, monkeypatch):
    """A working directory with that data and that teacher."""
    for name in ("digits.npz", "teacher.pth"):
        shutil.copy(trained / name, tmp_path / name)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def begin(teacher="teacher.pth", data="digits.npz", **options):
    if teacher == "teacher.pth":
        options = {"model": "resnet", "options": WIDTHS, **options}
    return kdbench.init(teacher, data, **options)


def said(start, name="teacher"):
    return "\n".join(words for of, words in start.facts if of == name)


def accuracy(start):
    """Of the recipe's teacher, as the recipe has it, on the test split."""
    dataset = load(start.recipe.data)
    found = prepare(start.recipe.teachers[0], dataset, start.recipe.folder)
    with torch.no_grad():
        logits = found.class_map(found.model(torch.from_numpy(apply(dataset.x_test, found.preprocessing))))
    return float((logits.argmax(1).numpy() == dataset.y_test).mean())


def refused(teacher="teacher.pth", data="digits.npz", **options):
    with pytest.raises(UserError) as caught:
        begin(teacher, data, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# --- what is found ----------------------------------------------------------------------------------------------------


def test_the_normalisation_that_the_teacher_was_trained_with_is_found(here):
    start = begin()
    assert start.recipe.teachers[0].preprocessing == Preprocessing(scale=1 / 255, mean=(0.5,), std=(0.5,))
    assert "normalised −1 … 1" in said(start)
    for tried in (OWN, "0 … 1", "0 … 255", "MNIST's"):
        assert tried in said(start)
    assert "on 1,347 training samples" in said(start)
    assert accuracy(start) > 0.85
    assert "the teacher is right on" not in " ".join(start.warnings)


@pytest.mark.parametrize("names", [None, NAMES])
def test_another_order_of_classes_is_found_and_put_right(here, names):
    tensors = torch.load("teacher.pth")
    order = torch.tensor([3, 1, 4, 0, 5, 9, 2, 6, 8, 7])  # output i means class order[i]
    for part in ("head.weight", "head.bias"):
        tensors[part] = tensors[part][order]
    torch.save(tensors, "teacher.pth")
    start = begin(data_options={"classes": names} if names else {})
    assert "its classes are in another order" in said(start)
    section = start.recipe.teachers[0]
    if names:
        assert section.classes == tuple(NAMES[place] for place in order)
    else:
        assert section.class_map == {str(output): str(int(place)) for output, place in enumerate(order)}
    assert accuracy(start) > 0.85
    assert "the teacher is right on" not in " ".join(start.warnings)


def test_a_teacher_that_knows_nothing_of_the_data_is_said_to(here):
    torch.manual_seed(1)
    torch.save(build("resnet", WIDTHS, (1, 8, 8), 10).state_dict(), "random.pth")
    start = begin("random.pth", model="resnet", options=WIDTHS)
    assert "are its classes and its inputs those of the data?" in start.warnings[0]
    assert start.warnings[0].split(": ")[0] in start.file.read_text().replace("\n#  ", "")
    assert not start.recipe.teachers[0].classes
    assert not start.recipe.teachers[0].class_map


def test_classes_of_the_same_words_are_mapped_and_others_get_a_new_head(here):
    tensors = torch.load("teacher.pth")
    for part in ("head.weight", "head.bias"):
        tensors[part] = torch.cat([torch.zeros_like(tensors[part][:1]) - 100, tensors[part]])
    torch.save(tensors, "eleven.pth")
    start = begin("eleven.pth", model="resnet", options=WIDTHS)
    assert start.recipe.teachers[0].new_head
    assert start.recipe.teachers[0].training.epochs == 5
    assert "it gets a new head" in said(start)
    mapped = begin(
        "eleven.pth", model="resnet", options=WIDTHS, out="b.toml", class_map={str(i + 1): str(i) for i in range(10)}
    )
    assert accuracy(mapped) > 0.85


def test_a_file_of_kdbench_says_itself_what_it_is(tiny_run, here):
    start = begin(str(tiny_run / "teacher.safetensors"), "digits")
    section = start.recipe.teachers[0]
    assert (section.source, section.model, section.options) == ("zoo", "resnet", {"widths": [6, 12], "blocks": [1, 1]})
    assert section.preprocessing == load(Data(source="digits")).preprocessing
    assert "as the teacher states" in said(start)


def test_an_onnx_file_is_a_black_box_and_the_recipe_can_be_checked(tiny_run, here, capsys):
    shutil.copy(tiny_run / "teacher.onnx", "box.onnx")
    cli(["init", "--teacher", "box.onnx", "--data", "digits.npz", "--student", "mlp"], standalone_mode=False)
    printed = capsys.readouterr().out
    assert "normalisations tried, with classes in the best order: the data's own" in printed
    assert printed.endswith("next     kdbench check box-digits.toml\n         kdbench run box-digits.toml\n")
    recipe = load_recipe("box-digits.toml")
    assert recipe.teachers[0].source == "onnx"
    assert recipe.teachers[0].preprocessing is None
    found = kdbench.check(recipe)
    assert "opened teacher" in dict(found.facts)["cpu"]


def test_data_without_labels_takes_what_is_stated(tiny_run, here):
    arrays = dict(np.load("digits.npz"))
    np.savez("bare.npz", x_train=arrays["x_train"], x_test=arrays["x_test"])
    start = begin(str(tiny_run / "teacher.onnx"), "bare.npz")
    assert "how good the teacher is can't be told" in said(start)
    assert start.recipe.distill.losses.keys() == {"kd"}
    assert start.recipe.data.options["labelled"] is False
    assert start.recipe.data.options["classes"] == [str(digit) for digit in range(10)]


def test_a_model_of_the_zoo_is_to_be_trained_here_on_data_of_the_zoo(here):
    start = begin("mlp", "digits", student="mlp", student_options={"widths": [16]}, name="My digits", out="a/x.toml")
    assert start.recipe.name == "my-digits"
    assert start.recipe.teachers[0].training is not None
    assert start.recipe.student.options == {"widths": [16]}
    assert "to be trained here" in said(start)
    assert "of training on this machine" in said(start, "time")
    assert load_recipe("a/x.toml") == start.recipe
    assert not start.recipe.quantize.model_fields_set  # all is left to a budget


@pytest.mark.parametrize(
    ("teacher", "data", "kind", "student"),
    [
        ("text_cnn", "sst2", "text", "text_cnn"),
        ("audio_cnn", "fsdd/recordings.zip", "spectrograms", "audio_cnn"),
        ("mlp", "multilabel", "tables", "mlp"),
    ],
)
def test_each_kind_of_data_has_its_student(teacher, data, kind, student, shared_data, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    start = begin(teacher, str(shared_data / data))
    assert start.recipe.student.model == student
    assert f"for {kind}" in said(start, "student")
    assert start.recipe.student.training.optimizer == "adamw"


def test_the_public_resnet56_is_found_to_want_imagenets_normalisation(shared_data, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("kdbench.pipeline.looking.SAMPLES", 100)
    monkeypatch.setattr("kdbench.pipeline.looking.TRIED", 64)
    labels = np.load(shared_data / "cifar10" / "test-labels.npy")[:600]
    sheet = np.asarray(Image.open(shared_data / "cifar10" / "test.webp").convert("RGB"))[: 6 * 32]
    images = sheet.reshape(6, 32, 100, 32, 3).swapaxes(1, 2).reshape(-1, 32, 32, 3)
    np.savez("c.npz", x_train=images[:500], y_train=labels[:500], x_test=images[500:], y_test=labels[500:])
    weights = str(shared_data / "weights" / "resnet56-4bfd9763.th")
    start = begin(weights, "c.npz", model="resnet", options={"depth": 56, "shortcut": "pad"})
    assert "normalised ImageNet's" in said(start)
    assert start.recipe.teachers[0].preprocessing.mean == (0.485, 0.456, 0.406)
    assert start.recipe.student.options == {"depth": 20}
    assert start.recipe.data.augment.flip


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("kind", "positions"), [("Bert", 12), ("Roberta", 20)])  # the latter after padding
def test_a_text_teacher_of_a_folder_brings_its_tokens(tmp_path, monkeypatch, kind, positions):
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    monkeypatch.chdir(tmp_path)
    save_tokenizer(transformers, tmp_path / "bert")
    config = getattr(transformers, f"{kind}Config")(
        vocab_size=8, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16,
        max_position_embeddings=positions, pad_token_id=7, id2label={0: "pos", 1: "neg"}, label2id={"pos": 0, "neg": 1},
    )  # fmt: skip
    getattr(transformers, f"{kind}ForSequenceClassification")(config).save_pretrained("bert")
    (tmp_path / "texts").mkdir()
    for part, times in (("train", 40), ("test", 8)):
        lines = ["pos,a good film" + " good" * 9, "neg,a bad film" + " bad" * 9] * times
        (tmp_path / "texts" / f"{part}.csv").write_text("\n".join(["label,text", *lines]) + "\n")
    start = begin("bert", "texts", student="embedding_bag")
    options = start.recipe.data.options
    assert (options["tokenizer"], options["length"]) == ("bert", 12)  # by the texts alone it would be 16
    assert start.recipe.student.options["vocabulary"] == len(WORDS)  # also of words that no text has
    assert "normalised" not in said(start)
    (tmp_path / "bert" / "tokenizer.json").unlink()
    assert refused("bert", "texts", out="two.toml").startswith("bert: no tokenizer.json in it")


# --- what is refused --------------------------------------------------------------------------------------------------


def test_an_existing_file_is_never_overwritten(here):
    (here / "mine.toml").write_text("mine")
    assert refused(out="mine.toml") == "mine.toml: exists already: choose another --out"
    assert (here / "mine.toml").read_text() == "mine"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"teacher": "teacher.pth", "model": None},
            "teacher.pth: does not say which model it belongs to: give --model",
        ),
        ({"options": {"depth": 20}}, "teacher.pth: does not fit the model: "),
        ({"options": {**WIDTHS, "deep": 1}}, "teacher.options: unknown key 'deep'"),
        ({"model": "resnett"}, "unknown model 'resnett': did you mean 'resnet'?"),
        ({"teacher": "nothing.pth"}, "--teacher: no file 'nothing.pth', and no model of the zoo"),
        ({"teacher": "digits.npz"}, "--teacher: digits.npz is no teacher: give an ONNX file"),
        ({"teacher": "resnet", "model": "resnet"}, "--model: is for a file of weights"),
        ({"teacher": "nets.py:net"}, "teacher.model 'nets.py:net': no file 'nets.py'"),
        ({"data": "nothing"}, "--data: no file or folder 'nothing', and no recipe of the zoo"),
        ({"data_options": {"klasses": []}}, "data.options: unknown key 'klasses': did you mean 'classes'?"),
        ({"student": "mobile"}, "unknown model 'mobile'"),
        ({"student": "mlp", "student_options": {"deep": 1}}, "student.options: unknown key 'deep'"),
        ({"class_map": {"ten": "0"}}, "teacher.class_map: the teacher has no class 'ten'"),
        ({"out": "."}, ".: a folder: give --out a file name"),
    ],
)
def test_what_does_not_fit_is_one_line_and_nothing_is_written(here, options, message):
    before = sorted(here.rglob("*"))
    assert message in refused(**options)
    assert sorted(here.rglob("*")) == before


def test_a_black_box_of_other_classes_is_refused_with_what_to_do(here):
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((60, 4), dtype=np.float32), np.arange(60) % 5
    np.savez("t.npz", x_train=x, y_train=y, x_test=x, y_test=y)
    save_mlp(here / "three.onnx")
    assert "answers 3 classes (0, 1, 2), the data has 5: say with --class-map" in refused("three.onnx", "t.npz")


def test_a_teacher_of_some_of_the_classes_is_looked_at_on_samples_of_these(here):
    y = np.arange(300) % 4
    x = np.eye(4, dtype=np.float32)[y]
    np.savez("t.npz", x_train=x, y_train=y, x_test=x, y_test=y)
    w, b = np.zeros((4, 3), np.float32), np.zeros(3, np.float32)
    w[2, 0] = w[1, 2] = 1  # the third class and the second; its second output is none
    save(
        here / "some.onnx", [helper.make_node("Gemm", ["x", "w", "b"], ["y"])],
        [("x", TensorProto.FLOAT, ["n", 4])], [("y", TensorProto.FLOAT, ["n", 3])], {"w": w, "b": b},
    )  # fmt: skip
    start = begin("some.onnx", "t.npz", class_map={"0": "2", "2": "1"})
    assert "100.0 % right on 150 training samples" in said(start)
    assert start.recipe.teachers[0].class_map == {"0": "2", "2": "1"}


# --- the parts --------------------------------------------------------------------------------------------------------

PLAIN = st.recursive(
    st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=6,
)


@given(PLAIN)
def test_plain_data_is_the_same_read_back_from_toml(value):
    assert tomllib.loads(f"value = {toml(value)}")["value"] == value


@given(st.permutations(range(6)))
def test_the_order_of_classes_is_the_one_with_most_right_answers(order):
    labels = np.repeat(np.arange(6), 4)
    outputs = np.argsort(order)[labels]
    outputs[0] = outputs[5]  # a mistake
    assert list(best_order(np.eye(6, dtype=np.float32)[outputs], labels)) == order


def test_normalisations_are_the_same_if_they_make_the_same_of_every_sample():
    assert same(Preprocessing(scale=1 / 255, mean=(0.0,), std=(1 / 255,)), Preprocessing())
    assert not same(Preprocessing(mean=(0.5,)), Preprocessing())
    dataset = load(Data(source="digits"))
    ways = list(normalisations(dataset).values())
    assert not any(same(a, b) for i, a in enumerate(ways) for b in ways[:i])


def test_a_student_has_at_most_two_fifths_of_its_teachers_parameters_where_there_is_one():
    dataset = load(Data(source="digits"))
    small = FAMILIES["small images"]
    for size in (5_000_000, 300_000, 50_000):
        assert parameters(*student(small, dataset, size), dataset) <= 0.4 * size
    assert student(small, dataset, 10) == ("resnet", small.students[-1][1])
    assert training(small, 50_000)["epochs"] == 26
    assert training(small, 500)["epochs"] == 60
