"""The precision that outputs imply: operands rounded as others round them, and bands that tell one from another."""

import math

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import helper, numpy_helper
from onnxruntime.quantization import QuantFormat

from kdbench.backends import pick_backend
from kdbench.backends.client import Worker
from kdbench.onnxfile import inspect
from kdbench.proofs.dequantizing import dequantized
from kdbench.proofs.precision import Error, answers, error, implied, reference, samples_of
from kdbench.proofs.prove import compared_inputs
from kdbench.proofs.rounding import PRECISIONS, rounded
from tests import models

BANDS = {
    "fp32": (1e-8, 1e-7), "tf32": (2e-4, 4e-4), "fp16": (2e-4, 4e-4), "bf16": (2e-3, 4e-3), "int8": (8e-3, 8e-3)
}  # fmt: skip


def run_plain(model: onnx.ModelProto, path, feed) -> list[np.ndarray]:
    onnx.save(model, path)
    with Worker(pick_backend("cpu"), 1) as worker:
        worker.load(path, plain=True)
        return list(worker.predict(feed).values())


def product(path, weight):
    """x [n, k] · w [k, m]."""
    nodes = [helper.make_node("MatMul", ["x", "w"], ["y"])]
    shapes = {"x": ["n", weight.shape[0]]}, {"y": ["n", weight.shape[1]]}
    return onnx.load(models.save(path, nodes, {"w": weight.astype(np.float32)}, *shapes))


@pytest.mark.parametrize(("precision", "bits"), [("tf32", 11), ("bf16", 8), ("fp16", 11)])
def test_operands_are_rounded_to_the_nearest(precision, bits, tmp_path):
    model = rounded(product(tmp_path / "m.onnx", np.ones((1, 1))), precision)

    @given(
        st.lists(st.floats(-(2.0**14), 2.0**14, width=32).filter(lambda x: abs(x) > 2**-13), min_size=1, max_size=50)
    )
    def check(values):
        x = np.asarray(values, np.float32)[:, None]
        worker_outputs = worker.predict({"x": x})["y"]
        mantissa, _ = np.frexp(worker_outputs)
        np.testing.assert_array_equal(mantissa * 2**bits, np.round(mantissa * 2**bits))  # no more bits than that
        _, exponent = np.frexp(x)
        assert (np.abs(worker_outputs - x) <= np.ldexp(0.5, exponent - bits)).all()

    onnx.save(model, tmp_path / "r.onnx")
    with Worker(pick_backend("cpu"), 1) as worker:
        worker.load(tmp_path / "r.onnx", plain=True)
        check()


def test_fp16_has_its_range_and_the_others_that_of_fp32(tmp_path):
    x = {"x": np.asarray([[1e5], [1e-9]], np.float32)}
    found = {
        precision: run_plain(rounded(product(tmp_path / "m.onnx", np.ones((1, 1))), precision), tmp_path / "r.onnx", x)
        for precision in ("tf32", "bf16", "fp16")
    }
    np.testing.assert_array_equal(found["fp16"][0], [[np.inf], [0]])
    for precision in ("tf32", "bf16"):
        np.testing.assert_allclose(found[precision][0], x["x"], rtol=2**-8)


def test_int8_weights_have_a_scale_for_each_output_channel(tmp_path):
    weight = np.random.default_rng(0).standard_normal((16, 3)) * [1, 100, 1e-3]
    model = rounded(product(tmp_path / "m.onnx", weight), "int8")
    (kept,) = (numpy_helper.to_array(t) for t in model.graph.initializer if t.name == "w.int8")
    scale = np.abs(weight).max(axis=0) / 127
    np.testing.assert_allclose(kept, np.round(weight / scale) * scale, rtol=1e-5)
    x = np.random.default_rng(1).random((8, 16)).astype(np.float32)
    off = run_plain(model, tmp_path / "r.onnx", {"x": x})[0] - x @ kept
    step = x.max() / 255
    assert 0 < np.abs(off / (step * np.abs(kept).sum(axis=0))).max() <= 0.5 + 1e-6  # activations: half a step at most


def test_rounding_everywhere_reaches_inputs_and_outputs_of_all_operators(tmp_path):
    nodes = [helper.make_node("Add", ["x", "b"], ["h"]), helper.make_node("Exp", ["h"], ["y"])]
    path = models.save(
        tmp_path / "m.onnx", nodes, {"b": np.full(1, 1 / 3, np.float32)}, {"x": ["n", 1]}, {"y": ["n", 1]}
    )
    assert rounded(onnx.load(path), "bf16") is None  # nothing in it is multiplied
    torch = pytest.importorskip("torch")
    x = np.linspace(-1, 1, 9, dtype=np.float32)[:, None]
    found = run_plain(rounded(onnx.load(path), "bf16", everywhere=True), tmp_path / "r.onnx", {"x": x})[0]
    short = (torch.from_numpy(x).bfloat16() + torch.tensor(1 / 3).bfloat16()).exp()
    np.testing.assert_array_equal(found, short.float().numpy())


def torch_answers(path, x, kind: str) -> np.ndarray:
    """Of a `models.cnn`, by torch in another precision: an implementation that shares nothing with the bands'."""
    import torch
    from torch.nn import functional

    weights = {t.name: torch.tensor(numpy_helper.to_array(t)) for t in onnx.load(path).graph.initializer}

    def forward(x, weights, layers):
        for i in range(layers):
            x = functional.conv2d(x, weights[f"c{i}"], padding=1).relu()
        return x.mean(dim=(2, 3)) @ weights["fc"]

    def tf32(x):
        return ((x.contiguous().view(torch.int32) + 0x1000) & ~0x1FFF).view(torch.float32)

    def forward_tf32(x, weights, layers):
        for i in range(layers):
            x = functional.conv2d(tf32(x), tf32(weights[f"c{i}"]), padding=1).relu()
        return tf32(x.mean(dim=(2, 3))) @ tf32(weights["fc"])

    layers = len(weights) - 1
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=kind == "bf16 autocast"):
        if kind == "tf32":
            return forward_tf32(torch.from_numpy(x), weights, layers).numpy()
        whole = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(kind, torch.float32)
        cast = {name: weight.to(whole) for name, weight in weights.items()}
        return forward(torch.from_numpy(x).to(whole), cast, layers).float().numpy()


@pytest.mark.parametrize(("seed", "layers"), [(0, 2), (1, 4), (2, 8)])
def test_the_precision_of_other_implementations_is_told(tmp_path, seed, layers):
    pytest.importorskip("torch")
    path = models.cnn(tmp_path / "m.onnx", layers=layers, seed=seed)
    x = models.images(16, seed)
    expected = reference(inspect(path), path, {"x": x})
    told = {
        kind: implied(error([torch_answers(path, x, kind)], expected.outputs).rms, expected.bands)
        for kind in ("fp32", "tf32", "fp16", "bf16 autocast", "bf16")
    }
    with Worker(pick_backend("cpu"), 1) as worker:
        worker.load(models.int8(path, tmp_path / "int8.onnx"))
        told["int8"] = implied(error(answers(worker, inspect(path), {"x": x}), expected.outputs).rms, expected.bands)
    assert told["fp32"] == ("fp32",)
    assert told["tf32"] == told["fp16"] == ("tf32", "fp16")  # of equal mantissa: one can't be told from the other
    assert "bf16" in told["bf16"]
    assert "bf16" in told["bf16 autocast"]
    assert "int8" in told["int8"]
    for kind in ("bf16", "bf16 autocast", "int8"):
        assert not {"fp32", "tf32", "fp16"} & set(told[kind])


def test_a_band_reaches_from_rounded_operands_to_all_tensors(tmp_path):
    path = models.cnn(tmp_path / "m.onnx", layers=4)
    feed = {"x": models.images(16)}
    exact, found = run_plain(onnx.load(path), tmp_path / "m2.onnx", feed), reference(inspect(path), path, feed).bands
    for precision in ("tf32", "bf16"):
        ends = [
            error(run_plain(rounded(onnx.load(path), precision, everywhere), tmp_path / "r.onnx", feed), exact).rms
            for everywhere in (False, True)
        ]
        assert found[precision] == (min(ends), max(ends))
        assert ends[0] != ends[1]


@given(st.sampled_from(list(BANDS)), st.floats(0, 1))
def test_an_error_within_a_band_is_of_it(precision, place):
    low, high = BANDS[precision]
    assert precision in implied(low * (high / low) ** place, BANDS)


def test_verdicts_at_the_edges():
    assert implied(0, BANDS) == ("fp32",)
    assert implied(0.03, BANDS) == ("int8",)
    assert implied(0.05, BANDS) == ()  # off by more than int8
    assert implied(1e-3, {}) == ()
    assert implied(5.6e-3, BANDS) == ("bf16", "int8")


def test_errors_by_hand():
    ones, labels = np.ones((2, 2)), np.asarray([1, 2])
    assert error([ones + 0.1, labels], [ones, labels + 1]) == Error(pytest.approx(0.1), pytest.approx(0.1))
    assert error([labels], [labels]) is None  # classes are no numbers to be off by a little
    assert error([ones], [ones * math.nan]) is None
    assert error([ones * math.nan], [ones]) == Error(math.inf, math.inf)


def test_a_cpu_that_is_off_by_itself_does_not_widen_the_band_of_fp32(tmp_path, monkeypatch):
    path = models.cnn(tmp_path / "m.onnx")
    bf16 = tmp_path / "bf16.onnx"
    onnx.save(rounded(onnx.load(path), "bf16"), bf16)
    load = Worker.load

    def loading(worker, model, *rest, plain=False, **options):
        return load(worker, bf16 if model == path and not plain else model, *rest, plain=plain or True, **options)

    monkeypatch.setattr(Worker, "load", loading)
    feed = {"x": models.images(8)}
    expected = reference(inspect(path), path, feed)
    with Worker(pick_backend("cpu"), 1) as worker:
        worker.load(path)
        off = error(answers(worker, inspect(path), feed), expected.outputs)
    assert implied(off.rms, expected.bands) == ("bf16",)


def test_models_of_all_kinds_get_bands(shared_data):
    path = shared_data / "onnx" / "mnist_8" / "model.onnx"  # of opset 8, which knows no int8
    feed = compared_inputs(inspect(path), None, {})
    assert {len(values) for values in feed.values()} == {samples_of(inspect(path))}  # it has a fixed batch of one
    assert set(reference(inspect(path), path, feed).bands) == {"fp32", *PRECISIONS} - {"int8"}


@pytest.mark.parametrize(("layers", "seed"), [(2, 0), (6, 1)])
def test_an_int8_file_is_told_from_its_weights_in_float(tmp_path, layers, seed):
    path = models.int8(models.cnn(tmp_path / "m.onnx", layers=layers, seed=seed), tmp_path / "int8.onnx")
    feed, copy = {"x": models.images(16, seed)}, dequantized(onnx.load(path))
    known = inspect(path)
    expected = reference(known, path, feed)
    assert set(expected.bands) == {"fp32", *PRECISIONS}
    onnx.save(copy, tmp_path / "float.onnx")
    onnx.save(rounded(copy, "bf16"), tmp_path / "bf16.onnx")
    told = {}
    with Worker(pick_backend("cpu"), 1) as worker:
        for name, file, plain in (
            ("int8 kernels", path, False),
            ("int8 emulated", path, True),
            ("fp32", tmp_path / "float.onnx", False),
            ("bf16", tmp_path / "bf16.onnx", True),
        ):
            worker.load(file, plain=plain)
            told[name] = implied(error(answers(worker, known, feed), expected.outputs).rms, expected.bands)
    assert "int8" in told["int8 kernels"]
    assert "int8" in told["int8 emulated"]
    assert told["fp32"] == ("fp32",)
    assert "bf16" in told["bf16"]


def test_activations_that_are_not_rounded_keep_their_range(tmp_path):
    """The quantizer drops a Relu where the range of its output does the same."""
    fp32 = models.cnn(tmp_path / "m.onnx")
    int8 = onnx.load(models.int8(fp32, tmp_path / "int8.onnx"))
    assert "Relu" not in {node.op_type for node in int8.graph.node}
    copy, feed = dequantized(int8), {"x": models.images(8)}
    assert "QuantizeLinear" not in {node.op_type for node in copy.graph.node}
    found = run_plain(copy, tmp_path / "float.onnx", feed)
    assert error(found, run_plain(onnx.load(fp32), tmp_path / "again.onnx", feed)).rms < 0.05


def test_what_has_no_activations_to_leave_unrounded(tmp_path):
    assert dequantized(onnx.load(models.cnn(tmp_path / "m.onnx"))) is None
    operators = models.int8(tmp_path / "m.onnx", tmp_path / "q.onnx", quant_format=QuantFormat.QOperator)
    assert dequantized(onnx.load(operators)) is None
    known = inspect(operators)
    assert reference(known, operators, {"x": models.images(4)}).bands == {}
