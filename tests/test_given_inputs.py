"""Generated inputs of which the file doesn't tell enough: what to add is said, and what is added holds."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from kdbench import bench, convert, profile, prove, quantize, slim
from kdbench.benchmark.loads import library
from kdbench.data.generated import described, generate
from kdbench.errors import UserError
from kdbench.onnxfile import inspect
from kdbench.store import write_npz
from tests import models
from tests.conftest import kdbench
from tests.test_report import MACHINE, artifact
from tests.test_sizes import save, save_images, save_tokens


def spec(text, dtype="int64", shape=("batch", None)):
    from kdbench.records import TensorSpec

    known = artifact("x", inputs=(TensorSpec(name="x", dtype=dtype, shape=shape),))
    (found,) = described([known], {"x": text})
    return found.inputs


@given(st.integers(1, 40), st.integers(-300, 300), st.integers(0, 300))
def test_values_lie_in_the_range_and_have_the_sizes(length, low, width):
    made = generate(spec(f"{length}:{low}..{low + width}"), 2, {})["x"]
    assert made.shape == (2, length)
    assert low <= made.min() <= made.max() <= low + width


def test_both_ends_of_a_range_are_drawn():
    assert set(generate(spec("99:3..5"), 8, {})["x"].ravel()) == {3, 4, 5}
    pixels = generate(spec("0..255", "float32", ("batch", 64, 64)), 1, {})["x"]
    assert pixels.dtype == np.float32
    assert (pixels.min(), pixels.max()) == (0, 255)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "should read SIZES, LOW..HIGH or both"),
        ("8:", "should read SIZES"),
        ("0..", "should read SIZES"),
        ("x", "should read SIZES"),
        ("8x", "should read SIZES"),
        ("8x8", "the model's is batch × 4: give the sizes after the first"),
        ("5", "the model's is batch × 4"),
        ("9..3", "not a range of uint8"),
        ("0..256", "not a range of uint8"),
        ("-1..2", "not a range of uint8"),
        ("0..99999999999999999999", "not a range of uint8"),
    ],
)
def test_what_does_not_fit_the_input_is_refused(text, said):
    with pytest.raises(UserError) as error:
        spec(text, "uint8", ("batch", 4))
    assert str(error.value).startswith(f"--input x={text}: ")
    assert said in str(error.value)


def test_an_input_is_looked_for_in_all_models(tmp_path):
    both = [inspect(save_images(tmp_path / "a.onnx")), inspect(save_tokens(tmp_path / "b.onnx"))]
    images, tokens = described(both, {"tokens": "0..4"})
    assert images == both[0]
    assert tokens.inputs[0].integers == (0, 4)
    with pytest.raises(UserError, match=r"--input token: the model has no such input: did you mean 'tokens'\?"):
        described(both, {"token": "0..4"})


def test_a_table_that_is_shorter_than_guessed_says_which_range_to_give(tmp_path, monkeypatch):
    monkeypatch.setattr("kdbench.pipeline.measuring.describe", lambda: MACHINE)
    monkeypatch.setattr("kdbench.pipeline.measuring.judged", lambda *_: ([], {}))
    model = save_tokens(tmp_path / "x.onnx", words=5)
    failed, right = (
        bench([model], dims={"sequence": 64}, inputs=wanted, budget_s=0.1, out=tmp_path / "out").ladder.rows[0]
        for wanted in ({}, {"tokens": "0..4"})
    )
    assert failed.error.startswith("generated integers are too large for a table of the model: add --input tokens=0..4")
    assert right.error is None


def test_a_size_without_a_name_says_what_to_give(tmp_path, monkeypatch, mistake):
    monkeypatch.chdir(tmp_path)
    graph = helper.make_graph(
        [helper.make_node("Relu", ["x"], ["y"])],
        "free",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", None, 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", None, 4])],
    )
    save(graph, tmp_path / "x.onnx")
    assert "dimension 1 has neither size nor name: give data, or 'kdbench bench --input x=SIZES'" in mistake(
        "bench x.onnx"
    )
    np.savez(tmp_path / "pack.npz", x_test=np.zeros((3, 2, 4), np.float32))
    said = mistake("bench x.onnx --input x=8x4 --pack pack.npz")
    assert "--input: for generated inputs, and pack.npz has samples: leave it out" in said


def save_sentences(path, words=5):
    """Token ids [batch, ?] of so many `words` to three scores: their vectors' mean times a matrix."""
    rng = np.random.default_rng(0)
    graph = helper.make_graph(
        [
            helper.make_node("Gather", ["table", "tokens"], ["e"]),
            helper.make_node("ReduceMean", ["e"], ["m"], axes=[1], keepdims=0),
            helper.make_node("MatMul", ["m", "w"], ["y"], name="fc"),
        ],
        "sentences",
        [helper.make_tensor_value_info("tokens", TensorProto.INT64, ["batch", None])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 3])],
        [
            numpy_helper.from_array(rng.standard_normal((words, 8)).astype(np.float32), "table"),
            numpy_helper.from_array(rng.standard_normal((8, 3)).astype(np.float32), "w"),
        ],
    )
    return save(graph, path)


def test_a_conversion_is_compared_and_proven_on_inputs_as_they_are_given(tmp_path):
    """Five words: ids up to 99, as they are generated else, are none of them, and the sentences have no length."""
    save_sentences(tmp_path / "m.onnx")
    write_npz(tmp_path / "pack.npz", {"x_calibration": np.zeros((3, 6), np.int64)})
    for given_, pack, said in (
        ({}, None, "dimension 1 has neither size nor name"),
        ({"tokens": "6"}, None, r"add --input tokens=0\.\.4"),
        ({"words": "6"}, None, "--input words: the model has no such input: known: tokens"),
        ({"tokens": "0..4"}, tmp_path / "pack.npz", "pack.npz has samples: leave it out"),
    ):
        with pytest.raises(UserError, match=said):
            convert(tmp_path / "m.onnx", tmp_path / "int8.onnx", "dynamic", pack, inputs=given_)
    assert not (tmp_path / "int8.onnx").exists()
    calling = ("convert", "m.onnx", "--to", "dynamic", "--out", "int8.onnx", "--budget", "0.2")
    done = kdbench(*calling, "--input", "tokens=6:0..4", cwd=tmp_path)
    assert "not proven" not in done.stderr
    assert "32 generated inputs" in done.stdout
    assert inspect(tmp_path / "int8.onnx").precision == "int8"


def save_pairs(path):
    """As BERT has them: token ids of many words, and segment ids of two; two scores."""
    rng = np.random.default_rng(0)
    names = {"input_ids": 200, "token_type_ids": 2}
    tables = [numpy_helper.from_array(rng.standard_normal((n, 8)).astype("f4"), f"{x}.table") for x, n in names.items()]
    nodes = [
        *(helper.make_node("Gather", [f"{name}.table", name], [f"{name}.e"]) for name in names),
        helper.make_node("Add", [f"{name}.e" for name in names], ["e"], name="sum"),
        helper.make_node("ReduceMean", ["e"], ["m"], axes=[1], keepdims=0),
        helper.make_node("MatMul", ["m", "w"], ["y"], name="fc"),
    ]
    inputs = [helper.make_tensor_value_info(name, TensorProto.INT64, ["batch", "sequence"]) for name in names]
    outputs = [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 2])]
    weights = [*tables, numpy_helper.from_array(rng.standard_normal((8, 2)).astype("f4"), "w")]
    return save(helper.make_graph(nodes, "pairs", inputs, outputs, weights), path)


@pytest.mark.parametrize("made", ["slim", "quantize"])
def test_a_model_of_two_tables_is_slimmed_and_quantized(made, tmp_path, monkeypatch, typed, mistake):
    monkeypatch.chdir(tmp_path)
    save_pairs(tmp_path / "m.onnx")
    command = f"{made} m.onnx --dim sequence=6 --out made.onnx"
    said = mistake(command)
    assert "m.onnx: " in said
    assert "add --input NAME=0..1 for one of input_ids, token_type_ids" in said
    assert "no such input: did you mean 'token_type_ids'?" in mistake(f"{command} --input token_type_id=0..1")
    assert not (tmp_path / "made.onnx").exists()
    last = ["--no-prove"] * (made == "quantize")
    done = typed(*command.split(), "--input", "input_ids=0..199", "--input", "token_type_ids=0..1", *last)
    assert (done.status, [spec.name for spec in inspect(tmp_path / "made.onnx").inputs]) == (
        0,
        ["input_ids", "token_type_ids"],
    )


def test_ranges_are_found_with_what_samples_share_as_it_is(tmp_path):
    """Also where its first size has a name, as a batch's has."""
    nodes = [helper.make_node("MatMul", ["x", "t"], ["h"]), helper.make_node("MatMul", ["h", "w"], ["y"])]
    weights = {"w": np.random.default_rng(0).standard_normal((8, 5)).astype(np.float32)}
    model = models.save(
        tmp_path / "m.onnx", nodes, weights, {"x": ["n", "k", "m"], "t": ["m", 8]}, {"y": ["n", "k", 5]}
    )
    assert quantize(model, tmp_path / "int8.onnx", dims={"k": 4, "m": 16}).precision == "int8"


@pytest.mark.parametrize("shape", [[16], []])
def test_an_input_that_all_samples_share_reaches_every_step_as_it_is(shape, tmp_path):
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["h"], name="product"),
        helper.make_node("Mul", ["h", "scale"], ["y"]),
    ]
    weights = {"w": np.random.default_rng(0).standard_normal((64, 16)).astype(np.float32)}
    model = models.save(tmp_path / "m.onnx", nodes, weights, {"x": ["n", 64], "scale": shape}, {"y": ["n", 16]})
    assert slim(model, tmp_path / "slim.onnx").macs == 64 * 16
    assert quantize(model, tmp_path / "int8.onnx").precision == "int8"
    assert convert(model, tmp_path / "fp16.onnx", "fp16").precision == "fp16"
    convert(model, tmp_path / "dynamic.onnx", "dynamic")
    proof = prove(model, tmp_path / "dynamic.onnx", budget_s=0.1)
    assert (proof.samples, proof.parity.samples) == ("32 generated inputs", 32)
    assert [error.layer for error in proof.layers] == ["w"]
    (profiled,) = profile(model, seconds=0.1)
    assert profiled.larger_latency_s is not None
    assert library(inspect(model), None, {}).shared == ("scale",)
    fixed = models.save(tmp_path / "8.onnx", nodes, weights, {"x": [8, 64], "scale": shape}, {"y": [8, 16]})
    assert library(inspect(fixed), None, {}).shared == ("scale",)
