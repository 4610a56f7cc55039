"""What `kdbench quantize --max-drop` says of what it has chosen, and of what it could not do, and why."""

import numpy as np
from onnx import helper

from kdbench.data.pack import EvalPack
from kdbench.pipeline import quantizing
from kdbench.pipeline.quantizing import fastest_int8
from kdbench.pipeline.racing import Raced
from kdbench.records import Quantize
from kdbench.stats import Interval
from tests import models
from tests.test_quantizing import TINY, answers
from tests.test_sensitivity import features, mlp

ONE_WAY = Quantize(max_drop=5, target="x86-vnni", calibration="minmax")
TWICE = Interval(2.0, 1.9, 2.1)


def race(monkeypatch, *claims):
    """Every candidate twice as fast as fp32, without a measurement; each breaks these claims."""

    def raced(subjects, place, pack, progress):
        return {one.artifact.rung: Raced(TWICE, 1.0, claims, None) for one in subjects[1:]}

    monkeypatch.setattr(quantizing, "raced", raced)


def labelled(path, scale=1.0):
    """Samples that an `mlp` answers rightly."""
    x = features(400, scale)
    return EvalPack("made", None, None, x, (), None, y_calibration=answers(path, x))


def test_what_cannot_be_quantized_is_named(tmp_path, monkeypatch):
    race(monkeypatch)
    weights = {"w": np.eye(4, dtype=np.float32), "v": np.random.default_rng(0).random((4, 3)).astype(np.float32)}
    nodes = [
        helper.make_node("Einsum", ["x", "w"], ["h"], equation="ij,jk->ik", name="sum"),
        helper.make_node("MatMul", ["h", "v"], ["y"], name="product"),
    ]
    path = models.save(tmp_path / "einsum.onnx", nodes, weights, {"x": ["n", 4]}, {"y": ["n", 3]})
    pack = EvalPack("made", None, None, features(64)[:, :4], (), None)
    found = fastest_int8(path, None, pack, ONE_WAY.model_copy(update={"max_drop": 50.0}))
    said = "its Einsum nodes stay in float, as onnxruntime can't quantize them: sum"
    assert said in found.artifact.warnings and said in found.budget.remarks


def test_what_the_budget_leaves_in_float_is_not_said_to_be_beyond_onnxruntime(tmp_path, monkeypatch):
    race(monkeypatch)
    path = mlp(tmp_path / "model.onnx", (TINY, 1.0, 1.0))
    options = ONE_WAY.model_copy(update={"bias_correction": False, "equalization": False})
    found = fastest_int8(path, None, labelled(path, TINY), options)
    assert "fc0" in found.artifact.options["left_in_float"]
    assert not any("stay in float" in warning for warning in found.artifact.warnings)


def test_outputs_that_are_always_the_same_are_remarked(tmp_path, monkeypatch):
    race(monkeypatch)
    weights = {"w": np.zeros((4, 3), np.float32), "b": np.arange(3, dtype=np.float32)}
    nodes = [helper.make_node("Gemm", ["x", "w", "b"], ["y"], name="product")]
    path = models.save(tmp_path / "dead.onnx", nodes, weights, {"x": ["n", 4]}, {"y": ["n", 3]})
    found = fastest_int8(path, None, EvalPack("made", None, None, features(64)[:, :4], (), None), ONE_WAY)
    assert any("outputs are the same for all 32 calibration samples" in said for said in found.artifact.warnings)
