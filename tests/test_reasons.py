"""What `kdbench quantize --max-drop` says of what it has chosen, and of what it could not do, and why."""

import re
from dataclasses import replace
from unittest import mock

import numpy as np
import onnx
import pytest
from onnx import helper

from kdbench.backends import pick_backend
from kdbench.benchmark.cells import Subject
from kdbench.data.pack import EvalPack
from kdbench.errors import UserError
from kdbench.evaluation import Parity
from kdbench.onnxfile import inspect
from kdbench.pipeline import quantizing, reasons
from kdbench.pipeline.candidates import Candidate
from kdbench.pipeline.quantizing import _fastest, fastest_int8
from kdbench.pipeline.racing import Place, Raced
from kdbench.pipeline.reasons import on_test, why_slow
from kdbench.quantization.judging import Judge, Loss, remarks
from kdbench.records import Quantize
from kdbench.stats import Interval
from kdbench.store import load_artifact, sidecar, write_npz
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


def test_a_test_split_of_another_kind_is_not_set_beside_the_budget(tmp_path, monkeypatch):
    """Without labels it would count changed answers, not those that got worse."""
    race(monkeypatch)
    path = mlp(tmp_path / "model.onnx", (1.0, 1.0, 1.0))
    pack = labelled(path)
    for given, told in (({}, False), ({"y_test": answers(path, features(200, seed=2))}, True)):
        found = fastest_int8(path, None, replace(pack, x_test=features(200, seed=2), **given), ONE_WAY)
        assert (found.budget.test_drop is not None) is told
        assert found.budget.test_samples == (200 if told else 0)


def test_a_search_that_has_looked_at_no_layers_leaves_no_figure_of_an_earlier_one(tmp_path, monkeypatch):
    race(monkeypatch)
    figure = tmp_path / "model-int8-budget.svg"
    figure.write_text("of an earlier search")
    path = mlp(tmp_path / "model.onnx", (1.0, 1.0, 1.0))
    found = fastest_int8(path, None, labelled(path), ONE_WAY)
    assert found.record.is_file()
    assert not found.plots
    assert not figure.exists()


def test_a_drop_of_just_the_budget_keeps_it():
    """0.7 points as a share are a little less than 7 of 1,000."""
    assert 0.7 / 100 < 7 / 1000
    loss = Loss(Interval(7 / 1000, 0.001, 0.013), 0.1, Parity(0.0, 1.0, 1.0, 1000, 1.0))
    assert on_test(loss, 0.7 / 100) == []
    (said,) = remarks(loss, 1000, 0.7 / 100, "accuracy")
    assert "can't rule out a drop of 1.3 points" in said


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
    said = "its Einsum nodes stay in float, as onnxruntime can't quantize them: “sum”"
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


# --- which one is chosen ----------------------------------------------------------------------------------------------

FASTER, LEVEL, FAST = (Interval(2.0, 1.9, 2.1), Interval(1.95, 1.8, 2.05), Interval(1.5, 1.4, 1.6))
HELD, BROKEN = (), ("int8 did not fuse: 1 of 8 convolutions and matrix products run in float",)


@pytest.mark.parametrize(
    ("first", "second", "chosen"),
    [
        ((FASTER, HELD), (FAST, HELD), "first"),  # though it loses more
        ((FASTER, HELD), (LEVEL, HELD), "second"),  # which can't be told from it, and loses less
        ((FASTER, HELD), (None, HELD), "first"),
        ((None, HELD), (FAST, HELD), "second"),
        ((None, HELD), (None, HELD), "second"),
        ((FASTER, BROKEN), (FAST, HELD), "second"),
        ((FASTER, BROKEN), (FAST, BROKEN), "first"),
        ((FASTER, BROKEN), (None, HELD), "first"),
    ],
)
def test_the_fastest_whose_claims_hold_is_chosen_and_of_equal_ones_the_least_lossy(first, second, chosen):
    def lossy(name, drop):
        loss = Loss(Interval(drop, drop, drop), 0.0, Parity(90, (0.1,), (1.0,), 1.0, 1.0))
        return Candidate(name, Quantize(), onnx.ModelProto(), {}, (), loss=loss)

    times = {name: Raced(found[0], 1.0, found[1], None) for name, found in (("first", first), ("second", second))}
    for able in ([lossy("first", 0.01), lossy("second", 0.0)], [lossy("second", 0.0), lossy("first", 0.01)]):
        assert _fastest(able, times).name == chosen


def test_a_claim_that_the_chosen_file_breaks_is_a_warning_of_its_record(tmp_path, monkeypatch, typed):
    race(monkeypatch, *BROKEN)
    path = mlp(tmp_path / "model.onnx")
    write_npz(tmp_path / "pack.npz", {"x_calibration": features(64)})
    said = typed("quantize", path, "--data", tmp_path / "pack.npz", "--max-drop", "50", "--method", "minmax")
    warning = f"on cpu, for which it was chosen: {BROKEN[0]}"
    assert f"WARNING: {warning}" in said.err
    assert warning in load_artifact(sidecar(tmp_path / "model-int8.onnx")).warnings


# --- where int8 does not win ------------------------------------------------------------------------------------------


@pytest.fixture
def slow_on_cpu(tmp_path, monkeypatch):
    """What is said of an int8 file of a small CNN that is not faster, whose record has these options."""
    monkeypatch.setattr(reasons, "PROFILE_S", 0.05)
    fp32 = models.cnn(tmp_path / "fp32.onnx", layers=2)
    feed = EvalPack("made", models.images(8), None, None, (), None)

    def said(speedup, options=None, **quantized):
        path = models.int8(fp32, tmp_path / "int8.onnx", **quantized)
        file = Subject(inspect(path, "x86-vnni, minmax", options=options or {}), path)
        return why_slow(Raced(speedup, 1.0, (), None), file, pick_backend("cpu"), Place("cpu", {}), feed)

    return said


def test_int8_that_does_not_win_names_the_slowest_operator_and_what_to_try(slow_on_cpu):
    first, *causes = slow_on_cpu(Interval(0.8, 0.7, 0.9))
    assert re.match(r"int8 does not win on cpu \(speed-up 0.80 \[0.70, 0.90\]\): \w+ takes \d+% of the kernels'", first)
    assert "try" in "".join(causes) or first.endswith("; ship it in fp32")
    assert not any("does not win" in cause for cause in causes)
    assert slow_on_cpu(None)[0].startswith("int8 does not win on cpu (speed-up not known): ")
    assert slow_on_cpu(Interval(1.2, 0.9, 1.5)) and not slow_on_cpu(TWICE)


def test_int8_that_cannot_be_profiled_is_answered_with_fp32(slow_on_cpu, monkeypatch):
    monkeypatch.setattr(reasons, "profile_one", mock.Mock(side_effect=UserError("no trace")))
    assert slow_on_cpu(None) == ["int8 does not win on cpu (speed-up not known): ship it in fp32"]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (
            {"operators": [], "left_in_float": ["conv1", "relu1"]},
            "left in float to keep the accuracy, raise --max-drop",
        ),
        ({"operators": [], "exclude": ["conv1", "relu1"]}, "left in float by --exclude"),
        ({"operators": []}, "onnxruntime's quantizer leaves it out"),
        ({"operators": ["MatMul"]}, "without --operator, or with --operator Conv"),
    ],
)
def test_layers_in_float_are_explained_by_what_the_user_asked_for(slow_on_cpu, options, said):
    # Between int8 nodes onnxruntime would quantize its weights by itself.
    found = "\n".join(slow_on_cpu(None, options, nodes_to_exclude=["conv1", "relu1", "pool", "flat"]))
    assert f"(c1: {said})" in found or f"(c1: not quantized in the file, `kdbench quantize` it {said})" in found
    assert ("--operator" in found) is bool(options["operators"])


def test_a_budget_that_even_float_misses_is_said_with_what_was_tried(tmp_path, monkeypatch, typed):
    """A backend that answers otherwise than the CPU, whatever is in int8."""
    judged = Judge.loss
    monkeypatch.setattr(Judge, "loss", lambda self, outputs: judged(self, [np.roll(outputs[0], 1, axis=1)]))
    path = mlp(tmp_path / "model.onnx")
    write_npz(tmp_path / "pack.npz", {"x_calibration": features(64)})
    said = typed("quantize", path, "--data", tmp_path / "pack.npz", "--max-drop", "1", "--method", "minmax")
    *notes, last = said.err.splitlines()
    assert said.status == 2 and said.out == "" and not list(tmp_path.glob("*int8*.onnx"))
    assert "samples: even with every layer in float it misses the budget; the closest, " in last
    assert last.endswith("raise --max-drop, or choose another backend by --for")
    assert len(notes) == 1 and str(tmp_path / "model-int8-failed.budget.json") in notes[0]


def test_a_drop_on_the_test_split_beyond_the_budget_is_a_remark():
    def said(value, bound):
        loss = Loss(Interval(value, value, value), 0.0, Parity(90, (0.1,), (1.0,), 1.0, 1.0))
        return on_test(loss, bound)

    (remark,) = said(0.02, 0.01)
    assert "on the 90 test samples the drop is 2 points, more than the budget of 1:" in remark
    assert said(0.01, 0.01) == said(0.02, None) == on_test(None, 0.01) == []
