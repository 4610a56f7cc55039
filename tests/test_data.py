"""Data: splits that don't leak, packs that fit, arrays that make sense."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from kdbench import data, evaluate
from kdbench.data import preprocess
from kdbench.data.dataset import Dataset
from kdbench.data.generated import generate
from kdbench.data.pack import PackMeta, load_pack, save_pack
from kdbench.errors import UserError
from kdbench.pipeline.learning import loaded
from kdbench.records import Data, Preprocessing, TensorSpec
from kdbench.records.writing import recipe_to_toml
from kdbench.store import load_recipe

FLOAT = TensorSpec(name="x", dtype="float32", shape=("batch", 1, 8, 8))


@pytest.fixture(scope="module")
def digits():
    return data.load(Data(source="digits"))


def rows(samples):
    return {sample.tobytes() for sample in samples}


def test_digits_are_split_by_class(digits):
    assert (len(digits.x_train), len(digits.x_test)) == (1347, 450)
    assert digits.x_train.shape[1:] == (1, 8, 8)
    shares = np.bincount(digits.y_test) / 450 - np.bincount(digits.y_train) / 1347
    assert np.abs(shares).max() < 0.003


def test_validation_is_cut_from_training_and_the_test_split_is_not_seen(digits):
    cut = data.load(Data(source="digits", split="validation", validation_samples=300))
    assert len(cut.x_train) == 1047
    assert rows(cut.x_train) | rows(cut.x_test) == rows(digits.x_train)
    assert not rows(cut.x_test) & (rows(digits.x_test) - rows(digits.x_train))


def test_calibration_comes_from_the_training_set(digits, tmp_path):
    save_pack(tmp_path / "pack.npz", digits, 200, seed=1)
    pack = load_pack(tmp_path / "pack.npz")
    assert len(pack.x_calibration) == 200
    assert rows(pack.x_calibration) <= rows(digits.x_train)
    np.testing.assert_array_equal(pack.x_test, digits.x_test)
    np.testing.assert_array_equal(pack.y_test, digits.y_test)


@pytest.mark.parametrize("several", [False, True])
def test_a_pack_carries_the_task_and_token_ids(tmp_path, several):
    x = np.random.default_rng(0).integers(0, 90, (20, 6))
    y = np.random.default_rng(1).integers(0, 2, (20, 3)) if several else np.arange(20) % 3
    task = "multi_label" if several else "classification"
    dataset = Dataset(x, y, x[:9], y[:9], ("a", "b", "c"), None, task)
    dataset.check()
    save_pack(tmp_path / "pack.npz", dataset, 5, seed=0)
    pack = load_pack(tmp_path / "pack.npz")
    assert (pack.task, pack.preprocessing) == (task, None)
    spec = TensorSpec(name="ids", dtype="int64", shape=("batch", 6))
    np.testing.assert_array_equal(pack.test_inputs([spec])["ids"], x[:9])
    np.testing.assert_array_equal(pack.labels([TensorSpec(name="z", dtype="float32", shape=("batch", 3))]), y[:9])


def test_a_pack_without_labels_says_where_they_are_needed(digits, tmp_path):
    save_pack(tmp_path / "pack.npz", replace(digits, y_train=None, y_test=None), 8, seed=0)
    pack = load_pack(tmp_path / "pack.npz")
    assert len(pack.test_inputs([FLOAT])["x"]) == 450
    with pytest.raises(UserError, match="no array 'y_test' in it: needed for accuracy"):
        pack.labels([])


def test_accuracy_of_several_labels_a_sample_is_not_made_up(tmp_path, small_model):
    x = np.zeros((5, 4), np.float32)
    np.savez(tmp_path / "pack.npz", x_test=x, y_test=np.eye(5, 3, dtype=int))
    found = evaluate(small_model, tmp_path / "pack.npz")
    assert (found.micro, found.macro) == (0, 0)  # all logits are 0, above which none is: no label is predicted


def test_preprocessing_of_many_samples_is_that_of_all_at_once(monkeypatch):
    samples = np.random.default_rng(0).normal(3, 2, (50, 3, 4)).astype(np.float32)
    at_once = preprocess.fit(samples, scale=0.5)
    monkeypatch.setattr(preprocess, "CHUNK", 7)
    by_chunks = preprocess.fit(samples, scale=0.5)
    np.testing.assert_allclose(by_chunks.mean, at_once.mean, rtol=1e-12)
    np.testing.assert_allclose(by_chunks.std, at_once.std, rtol=1e-12)
    np.testing.assert_allclose(at_once.std, (samples * 0.5).std(axis=(0, 2)), rtol=1e-5)


def test_preprocessing_normalises_the_training_set_by_channel():
    samples = np.random.default_rng(0).integers(0, 256, (50, 3, 4, 4)).astype(np.uint8)
    values = preprocess.apply(samples, preprocess.fit(samples, scale=1 / 255))
    assert values.dtype == np.float32
    np.testing.assert_allclose(values.mean(axis=(0, 2, 3)), 0, atol=1e-5)
    np.testing.assert_allclose(values.std(axis=(0, 2, 3)), 1, atol=1e-5)


@pytest.mark.parametrize("channels", ["last", "too few"])
def test_means_of_other_channels_than_the_samples_have_are_named(tmp_path, channels):
    way = Preprocessing(mean=(0.5, 0.5, 0.5), std=(1, 1, 1))
    shape = (4, 4, 3) if channels == "last" else (2, 4, 4)
    meta = np.frombuffer(PackMeta(preprocessing=way).to_json().encode(), np.uint8)
    np.savez(tmp_path / "pack.npz", x_test=np.zeros((2, *shape), np.float32), meta=meta)
    spec = FLOAT.model_copy(update={"shape": ("batch", *shape)})
    with pytest.raises(UserError, match=f"'x_test': mean has 3 and std 3 values, .* have {shape[0]} channels, their"):
        load_pack(tmp_path / "pack.npz").test_inputs([spec])


def test_preprocessing_by_hand():
    values = preprocess.apply(np.array([[8]], dtype=np.uint8), Preprocessing(scale=0.5, mean=(1.0,), std=(2.0,)))
    assert values.tolist() == [[1.5]]


@pytest.mark.parametrize("dtype", ["float32", "float16", "float64", "int32", "int64", "uint8", "bool"])
def test_generated_inputs_have_the_types_and_shapes_that_are_stated(dtype):
    specs = [TensorSpec(name="a", dtype=dtype, shape=(None, 3)), TensorSpec(name="b", dtype=dtype, shape=("n", "len"))]
    found = generate(specs, 4, {"len": 6})
    assert {name: (values.shape, values.dtype.name) for name, values in found.items()} == {
        "a": ((4, 3), dtype),
        "b": ((4, 6), dtype),
    }


@pytest.mark.parametrize(
    ("shape", "dims", "message"),
    [
        (("n", "length"), {}, "add --dim length=N"),
        (("n", None), {}, "neither size nor name"),
        (("n", "length"), {"lenght": 3}, "did you mean 'length'"),
        (("n", "length"), {"length": 10**9}, "too many"),
        (("n", "length"), {"n": 3, "length": 2}, "--dim n: the first dimension is the batch: use --batch"),
    ],
)
def test_inputs_that_cannot_be_generated_say_what_to_give(shape, dims, message):
    with pytest.raises(UserError) as error:
        generate([TensorSpec(name="a", dtype="float32", shape=shape)], 2, dims)
    assert message in str(error.value)


def test_a_first_dimension_that_stands_elsewhere_too_is_a_size():
    specs = [TensorSpec(name="x", dtype="float32", shape=("n", "length")),
             TensorSpec(name="mask", dtype="float32", shape=("length", "length"))]  # fmt: skip
    assert {name: values.shape for name, values in generate(specs, 4, {"length": 6}).items()} == {
        "x": (4, 6),
        "mask": (6, 6),
    }


def pack_with(tmp_path, **arrays):
    path = tmp_path / "pack.npz"
    good = {"x_test": np.zeros((3, 1, 8, 8), np.float32), "y_test": np.array([0, 1, 2])}
    np.savez(path, **(good | arrays))
    return path


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"y_test": np.array([0, 1, -1])}, "label -1 is out of range"),
        ({"y_test": np.array([0.0, 1.0, 2.0])}, "one integer a sample"),
        ({"y_test": np.array([0, 1])}, "3 samples, but 2 labels"),
        ({"x_test": np.full((3, 1, 8, 8), np.nan, np.float32)}, "NaN"),
        ({"x_test": np.zeros((0, 1, 8, 8), np.float32), "y_test": np.zeros(0, int)}, "N of 1 or more"),
        ({"x_tset": np.zeros((3, 1))}, "unknown array 'x_tset': did you mean 'x_test'"),
        ({"meta": np.frombuffer(b'{"schema": 9}', np.uint8)}, "newer kdbench"),
        ({"meta": np.frombuffer(b"{cut", np.uint8)}, "damaged"),
    ],
)
def test_packs_that_make_no_sense_are_named(tmp_path, arrays, message):
    with pytest.raises(UserError) as error:
        load_pack(pack_with(tmp_path, **arrays))
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (FLOAT.model_copy(update={"shape": ("batch", 3, 8, 8)}), "has samples of shape (1, 8, 8)"),
        (FLOAT.model_copy(update={"shape": ("batch", 64)}), "has samples of shape (1, 8, 8)"),
        (FLOAT.model_copy(update={"dtype": "int32"}), "is float32, the model's input 'x' takes int32"),
    ],
)
def test_a_pack_that_does_not_fit_the_model_says_so(tmp_path, spec, message):
    with pytest.raises(UserError) as error:
        load_pack(pack_with(tmp_path)).test_inputs([spec])
    assert message in str(error.value)


def test_a_label_beyond_the_models_classes_is_named(tmp_path):
    pack = load_pack(pack_with(tmp_path, y_test=np.array([0, 1, 12])))
    with pytest.raises(UserError, match="label 12 is out of range: 0 to 9 allowed"):
        pack.labels([TensorSpec(name="logits", dtype="float32", shape=("batch", 10))])


def test_arrays_of_ones_own(tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (20, 6, 6, 3)).astype(np.uint8)
    labels = np.arange(20) % 4
    path = tmp_path / "mine.npz"
    np.savez(path, x_train=images, y_train=labels, x_test=images[:8], y_test=labels[:8])
    found = data.load(Data(source="arrays", options={"path": str(path), "classes": ["a", "b", "c", "d"]}))
    assert found.x_train.shape == (20, 3, 6, 6)
    assert found.classes == ("a", "b", "c", "d")
    np.testing.assert_array_equal(found.x_train[0, 1], images[0, :, :, 1])


def test_files_are_looked_for_beside_the_recipe_and_then_in_the_working_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    table = "a,label\n1,x\n2,y\n3,x\n"
    for name, text in (("train.csv", "a,label\n"), ("test.csv", table), ("sub/train.csv", table + "4,y\n")):
        Path(name).parent.mkdir(exist_ok=True)
        Path(name).write_text(text)
    tables = {"data.options": '{ train = "train.csv", test = "test.csv" }', "data.source": "tables"}
    small = {"model": "mlp", "options": "{ widths = [4] }"}
    models = {f"{part}.{field}": value for part in ("teacher", "student") for field, value in small.items()}
    recipe = load_recipe("digits", {**tables, **models, "data.augment": "{}"})
    Path("sub/recipe.toml").write_text(recipe_to_toml(recipe))
    found, _ = loaded(load_recipe("sub/recipe.toml"), print)
    assert (len(found.x_train), len(found.x_test)) == (4, 3)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "data.options.path"),
        ({"path": "/nowhere/x.npz"}, "no such file"),
        ({"path": "PACK", "classes": ["one"]}, "out of range"),
        ({"file": "x"}, "data.options"),
    ],
)
def test_options_of_a_source_that_do_not_fit_are_named(tmp_path, options, message):
    path = tmp_path / "mine.npz"
    x, y = np.zeros((4, 1, 2, 2)), np.array([0, 1, 0, 1])
    np.savez(path, x_train=x, y_train=y, x_test=x, y_test=y)
    options = {name: str(path) if value == "PACK" else value for name, value in options.items()}
    with pytest.raises(UserError) as error:
        data.load(Data(source="arrays", options=options))
    assert message in str(error.value)
