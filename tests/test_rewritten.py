"""What is proven and claimed of a file that was rewritten in another precision, beside its parent."""

import math
from dataclasses import replace

import numpy as np
import onnx
import pytest
from onnx import helper

from kdbench import convert, prove, quantize
from kdbench.backends import pick_backend
from kdbench.backends.client import Worker
from kdbench.benchmark.cells import Subject
from kdbench.cli.proof import show_proof_of
from kdbench.data.pack import EvalPack
from kdbench.evaluation import answer
from kdbench.onnxfile import inspect, load_model
from kdbench.pipeline import proving
from kdbench.proofs.precision import answers, error, implied, reference
from kdbench.proofs.rewritten import layer_errors, sqnr_db
from kdbench.proofs.widening import widened
from kdbench.quantization.samples import samples_of
from kdbench.report.claims import broken_claims
from kdbench.report.rewritten import proof_lines
from kdbench.stats import Interval
from tests import models
from tests.test_report import artifact as an_artifact
from tests.test_report import cell, evaluation


@pytest.fixture(scope="module")
def cnn(tmp_path_factory):
    return models.cnn(tmp_path_factory.mktemp("rewritten") / "cnn.onnx")


def test_the_error_of_each_layer_by_hand(tmp_path):
    generator = np.random.default_rng(0)
    first, second = (generator.standard_normal((8, 8)).astype(np.float32) for _ in range(2))
    nodes = [
        helper.make_node("MatMul", ["x", "w1"], ["h"], name="one"),
        helper.make_node("Relu", ["h"], ["r"]),
        helper.make_node("MatMul", ["r", "w2"], ["y"], name="two"),
    ]
    shapes = {"x": ["n", 8]}, {"y": ["n", 8]}
    parent = models.save(tmp_path / "a.onnx", nodes, {"w1": first, "w2": second}, *shapes)
    child = models.save(tmp_path / "b.onnx", nodes, {"w1": first, "w2": 0.9 * second}, *shapes)
    x = generator.standard_normal((10, 8)).astype(np.float32)
    (one, two), untold = layer_errors(parent, child, {"x": x})
    assert (one.layer, one.operator, one.sqnr_db, untold) == ("w1", "MatMul", math.inf, 0)
    assert (two.layer, two.sqnr_db) == ("w2", pytest.approx(20, abs=1e-3))  # a tenth of each number: 20 dB


@pytest.mark.parametrize(("batch", "told"), [(16, {"sqnr_db:w"}), (64, set())])
def test_layers_of_models_that_take_many_samples_at_once_are_not_held_in_memory(tmp_path, batch, told):
    weight, x = np.eye(8, dtype=np.float32), np.ones((64, 8), np.float32)
    shapes = {"x": [batch, 8]}, {"y": [batch, 8]}
    nodes = [helper.make_node("MatMul", ["x", "w"], ["y"], name="one")]
    parent = models.save(tmp_path / "a.onnx", nodes, {"w": weight}, *shapes)
    child = models.save(tmp_path / "b.onnx", nodes, {"w": 0.9 * weight}, *shapes)
    samples = samples_of(EvalPack("made", None, None, x, (), None), inspect(parent).inputs, None)
    assert proving.layer_metrics(parent, child, samples).keys() == told


def test_layers_have_the_same_errors_in_both_forms_of_int8(cnn, tmp_path):
    """That of QOperator gives their outputs other names, and takes each Relu away; its layers read each other's."""
    np.savez(tmp_path / "pack.npz", x_calibration=models.images(32))
    found = {}
    for form in ("qdq", "qoperator"):
        quantize(cnn, tmp_path / f"{form}.onnx", tmp_path / "pack.npz", {"format": form})
        errors, untold = layer_errors(cnn, tmp_path / f"{form}.onnx", {"x": models.images(16)})
        assert untold == 0
        found[form] = {error.layer: error.sqnr_db for error in errors}
    assert len(set(found["qdq"].values())) == len(found["qdq"]) == 4
    assert found["qoperator"] == pytest.approx(found["qdq"], abs=0.5)


def test_a_file_is_proven_beside_its_parent(cnn, tmp_path):
    x = models.images(40)
    expected = next(iter(answer(cnn, {"x": x}, 8).outputs.values())).argmax(axis=1)
    labels = np.where(np.arange(40) < 30, expected, (expected + 1) % 10)
    np.savez(tmp_path / "pack.npz", x_test=x, y_test=labels)
    models.int8(cnn, tmp_path / "int8.onnx")
    proof = prove(cnn, tmp_path / "int8.onnx", tmp_path / "pack.npz", budget_s=0.5)
    assert (proof.samples, proof.metric, proof.scores[0]) == ("40 evaluation samples", "accuracy", 0.75)
    assert proof.difference.low <= proof.scores[1] - 0.75 <= proof.difference.high
    assert (sum(proof.kernels.low.values()), proof.kernels.floating) == (4, {})
    assert [error.layer for error in proof.layers] == ["c0", "c1", "c2", "fc"]
    # The quantizer takes each Relu away, and gives its output's name to the convolution.
    assert all(15 < error.sqnr_db < 60 for error in proof.layers)
    assert 15 < proof.output_db < 60
    assert proof.rounds == 5
    assert proof.ratio.low <= proof.ratio.value <= proof.ratio.high
    lines = dict(proof_lines(proof))
    assert lines["runs"] == "4 of 4 layers in int8 (3 QLinearConv, 1 QLinearMatMul)"
    assert lines["accuracy"].startswith("75.0 % → ")
    assert list(lines) == ["size", "runs", "agreement", "SQNR", "accuracy", "latency"]
    slow = replace(proof, ratio=Interval(0.5, 0.4, 0.8))
    assert slow.slower
    assert "2.00× SLOWER [1.25, 2.50] (on cpu, 1 thread, batch 1, 5 processes)" in dict(proof_lines(slow))["latency"]
    even = replace(proof, ratio=Interval(1.0, 0.9, 1.1))
    assert not even.slower
    assert "no difference [0.90, 1.10]" in dict(proof_lines(even))["latency"]


def test_a_file_that_is_slower_says_so_and_why(tmp_path, capsys, monkeypatch):
    """A copy of half floats that the worker makes slower by a known share, as the benchmark's self-test does."""
    parent = models.cnn(tmp_path / "fp32.onnx", width=2, layers=1)
    convert(parent, tmp_path / "fp16.onnx", "fp16")

    def slowed(artifact, model):
        return Subject(artifact, model, 3.0 if artifact.rung == proving.CHILD else 0.0)

    monkeypatch.setattr(proving, "Subject", slowed)
    proof = show_proof_of(parent, tmp_path / "fp16.onnx", None, budget_s=0.5)
    assert proof.slower
    assert "× SLOWER" in capsys.readouterr().out
    assert proof.causes


def test_a_file_of_half_floats_is_judged_by_bands_of_its_own(cnn, tmp_path):
    convert(cnn, tmp_path / "fp16.onnx", "fp16")
    path, feed = tmp_path / "fp16.onnx", {"x": models.images(16)}
    expected = reference(inspect(path), path, feed)
    assert set(expected.bands) == {"fp32", "tf32", "bf16", "fp16", "int8"}
    onnx.save(widened(load_model(path)), tmp_path / "wide.onnx")
    told = {}
    with Worker(pick_backend("cpu"), 1) as worker:
        for name, file in (("wide", tmp_path / "wide.onnx"), ("fp16", path)):
            worker.load(file)
            told[name] = implied(error(answers(worker, inspect(file), feed), expected.outputs).rms, expected.bands)
        onnx.save(widened(load_model(path), rounding=True), tmp_path / "rounded.onnx")
        worker.load(tmp_path / "rounded.onnx", plain=True)
        told["rounded"] = implied(error(answers(worker, inspect(path), feed), expected.outputs).rms, expected.bands)
    assert told["wide"] == ("fp32",)
    assert told["rounded"] == ("tf32", "fp16")
    assert told["fp16"] in (("fp32",), ("tf32", "fp16"))  # as the CPU provider has kernels


def test_weights_that_are_only_stored_in_less_claim_nothing(cnn, tmp_path):
    convert(cnn, tmp_path / "bf16.onnx", "bf16")
    assert reference(inspect(tmp_path / "bf16.onnx"), tmp_path / "bf16.onnx", {"x": models.images(8)}).bands == {}


def test_what_a_file_leaves_in_float_on_purpose_breaks_no_claim():
    def said(precision, file, ran):
        made = an_artifact("student", precision=precision, operators=file)
        return broken_claims(
            made, cell("student", "0", precision), evaluation("student", "0", optimized_operators=ran), None
        )

    assert said("int8", {"MatMulInteger": 6, "MatMul": 2}, {"DynamicQuantizeMatMul": 6, "MatMul": 2}) == ()
    (claim,) = said("int8", {"MatMulInteger": 6, "MatMul": 2}, {"DynamicQuantizeMatMul": 5, "MatMul": 3})
    assert claim == "int8 did not fuse: 1 of 6 convolutions and matrix products run in float"
    assert said("int4", {"DequantizeLinear": 6, "MatMul": 8}, {"MatMulNBits": 6, "MatMul": 2}) == ()
    (claim,) = said("int4", {"DequantizeLinear": 6, "MatMul": 8}, {"MatMul": 8})
    assert claim == "int4 did not fuse: 6 of 6 convolutions and matrix products run in float"


def test_a_layer_that_overflows_is_infinitely_wrong():
    assert sqnr_db(1.0, math.inf) == sqnr_db(0.0, 1.0) == -math.inf
