"""The proofs of a cell: the precision that outputs imply, shares of nodes and of time, and claims that don't hold."""

import json
import math

import numpy as np
import onnx
import pytest
from onnx import helper

from kdbench import bench
from kdbench.backends import pick_backend
from kdbench.backends.client import Worker
from kdbench.data.generated import generate, shared_inputs
from kdbench.onnxfile import inspect
from kdbench.onnxgraph import count_macs
from kdbench.proofs.precision import Error, Reference, answers, error, samples_of
from kdbench.proofs.prove import Sized, compared_inputs, prove
from kdbench.proofs.rounding import PRECISIONS
from kdbench.records import Proof, TensorSpec
from kdbench.report.claims import broken_claims, proven
from kdbench.report.ladder_tables import details_table
from kdbench.report.table import ladder
from kdbench.store import load_result
from tests import models
from tests.conftest import kdbench
from tests.test_precision import BANDS
from tests.test_report import arrays, artifact, cell, evaluation, result

INPUT = TensorSpec(name="x", dtype="float32", shape=("n", 4))


def fake(tmp_path, **behaviour):
    path = tmp_path / "fake.json"
    path.write_text(json.dumps(behaviour))
    return path


def proof(tmp_path, expected=None, **behaviour):
    made = artifact("teacher", macs=10**9, inputs=(INPUT,))
    record = evaluation("teacher", None, backend="fake", placement=behaviour.get("placement", {}))
    path = fake(tmp_path, **behaviour)
    return prove(record, "fake", made, path, [(Sized({}, {"x": np.zeros((3, 4), np.float32)}, expected), 4)])


def test_the_share_of_time_on_each_provider(tmp_path):
    placement = {"FakeExecutionProvider": {"Conv": 3}, "CPUExecutionProvider": {"Relu": 1}}
    kernels = [
        {"name": "a", "operator": "Conv", "provider": "FakeExecutionProvider", "us": 30.0},
        {"name": "b", "operator": "Relu", "provider": "CPUExecutionProvider", "us": 90.0},
    ]
    found = proof(tmp_path, placement=placement, profile={"runs": 5, "kernels": kernels})
    assert found.proofs[0].time_share == {"FakeExecutionProvider": 0.25, "CPUExecutionProvider": 0.75}
    cell_ = cell("teacher", None, backend="fake")
    row = proven(artifact("teacher"), cell_, found, {})
    assert (row["node_share"], row["time_share"]) == (0.75, 0.25)
    assert row["broken_claims"] == ("fallback: of 4 nodes 1 on CPUExecutionProvider (Relu) for 75% of the time",)
    alone = proof(tmp_path, placement={"FakeExecutionProvider": {"Conv": 3}})  # no profile needed, and none told
    assert alone.proofs[0].time_share == {"FakeExecutionProvider": 1.0}
    assert alone.affinity


def test_outputs_are_compared(tmp_path):
    expected = Reference([np.ones((3, 2), np.float32)], {"bf16": (1e-3, 1e-3)})
    found = proof(tmp_path, expected)  # the fake answers with zeros
    (one,) = found.proofs
    assert (one.rms_error, one.largest_error, one.compared) == (1.0, 1.0, 3)
    assert "more than int8 would" in broken_claims(artifact("t"), cell("t", None), found, None)[0]


# --- of each batch and size ------------------------------------------------------------------------------------------


def free_cnn(path):
    """A `models.cnn` that takes images of any size."""
    model = onnx.load(models.cnn(path))
    for place, name in ((2, "height"), (3, "width")):
        model.graph.input[0].type.tensor_type.shape.dim[place].dim_param = name
    onnx.save(model, path)
    return path


def test_each_batch_and_size_is_proven_by_itself(tmp_path):
    path = free_cnn(tmp_path / "m.onnx")
    report = bench([path], batches=(1, 3), dims={"height,width": [8, 16]}, budget_s=0.1, out=tmp_path / "out")
    (found,) = report.ladder.result.evaluations
    slots = [(proof.batch, proof.dims["height"], proof.dims["width"]) for proof in found.proofs]
    assert slots == [(1, 8, 8), (1, 16, 16), (3, 8, 8), (3, 16, 16)]
    assert {proof.compared for proof in found.proofs} == {64}
    assert [row.ran_as for row in report.ladder.rows] == ["fp32"] * 4
    bands = {proof.dims["height"]: proof.bands["bf16"] for proof in found.proofs}
    assert bands[8] != bands[16]  # each size has its own


def test_a_proof_is_no_other_cells():
    sound = {"compared": 9, "bands": BANDS, "rms_error": 1e-7}
    proofs = (
        Proof(batch=4, dims={"length": 8}, **sound),
        Proof(batch=4, dims={"length": 16}, **sound | {"rms_error": 3e-3}),
    )
    found = evaluation("teacher", "0", proofs=proofs)
    for changes, ran_as, broken in (
        ({"dims": {"length": 8}}, "fp32", 0),
        ({"dims": {"length": 16}}, "bf16", 1),
        ({"dims": {"length": 32}}, None, 0),  # nothing was proven of it, good or bad
        ({"dims": {"length": 8}, "batch": 1}, None, 0),
    ):
        row = proven(artifact("teacher"), cell("teacher", "0", **changes), found, {})
        assert (row["ran_as"], len(row["broken_claims"])) == (ran_as, broken)


def test_a_batch_that_the_backend_refuses_costs_its_own_proof(tmp_path):
    feed, expected = {"x": np.zeros((4, 4), np.float32)}, Reference([np.ones((4, 2), np.float32)], {})
    record = evaluation("teacher", None, backend="fake", placement={"FakeExecutionProvider": {"Conv": 3}})
    slots = [(Sized({}, feed, expected), batch) for batch in (1, 2, 3)]
    made = artifact("teacher", inputs=(INPUT,))
    found = prove(record, "fake", made, fake(tmp_path, fail_at_batch=2), slots)
    assert [proof.batch for proof in found.proofs] == [1, 3]
    found = prove(record, "fake", made, fake(tmp_path, crash_at_batch=2), slots)
    assert [proof.batch for proof in found.proofs] == [1]


def test_samples_of_a_larger_size_are_fewer(tmp_path):
    model = onnx.load(free_cnn(tmp_path / "m.onnx"))
    assert count_macs(model) is None
    small, large = (count_macs(model, {"height": size, "width": size}) for size in (16, 512))
    assert small == inspect(models.cnn(tmp_path / "fixed.onnx")).macs
    assert samples_of(artifact("m", macs=small)) > samples_of(artifact("m", macs=large)) == 5


def test_inputs_that_all_samples_share_are_fed_as_they_are(tmp_path):
    specs = [TensorSpec(name=name, dtype="float32", shape=shape)
             for name, shape in (("x", ("n", 4)), ("bias", (1, 4)), ("scale", ()), ("mask", (4, 4)))]  # fmt: skip
    assert shared_inputs(specs) == {"bias", "scale", "mask"}
    nodes = [
        helper.make_node("MatMul", ["x", "mask"], ["h"]),
        helper.make_node("Mul", ["h", "scale"], ["s"]),
        helper.make_node("Add", ["s", "bias"], ["y"]),
    ]
    path = models.save(tmp_path / "m.onnx", nodes, {}, {spec.name: spec.shape for spec in specs}, {"y": ["n", 4]})
    feed = compared_inputs(inspect(path), None, {})
    assert feed["bias"].shape == (1, 4)
    one = generate(inspect(path).inputs, 1, {})
    with Worker(pick_backend("cpu"), 1) as worker:
        worker.load(path, plain=True)
        whole, parts = (answers(worker, inspect(path), feed, batch) for batch in (None, 7))
    assert whole[0].shape == (len(feed["x"]), 4)
    np.testing.assert_allclose(parts[0], whole[0], rtol=1e-5)
    assert one["scale"].shape == ()


def test_an_output_without_samples_is_left_out_where_there_are_several_batches(tmp_path):
    nodes = [
        helper.make_node("Relu", ["x"], ["y"]),
        helper.make_node("ReduceMean", ["x"], ["mean"], axes=[0], keepdims=0),
    ]
    path = models.save(tmp_path / "m.onnx", nodes, {}, {"x": ["n", 2]}, {"y": ["n", 2], "mean": [2]})
    feed = {"x": np.arange(10, dtype=np.float32).reshape(5, 2)}
    with Worker(pick_backend("cpu"), 1) as worker:
        worker.load(path)
        whole, parts = (answers(worker, inspect(path), feed, batch) for batch in (None, 3))
    assert parts[1] is None
    assert error(parts, whole) == Error(0.0, 0.0)
    slots = [(Sized({}, feed, Reference(whole, {})), batch) for batch in (2, 3, 5)]  # 2 is also the length of the mean
    found = prove(evaluation("m", None), "cpu", inspect(path), path, slots)
    assert [proof.rms_error for proof in found.proofs] == [0.0, 0.0, 0.0]


def claims(m=None, threads_used=None, precision="fp32", **facts):
    facts = {"compared": 9, "bands": BANDS, "rms_error": 1e-7} | facts
    m = m or cell("teacher", "0", precision=precision)
    return broken_claims(artifact("teacher"), m, evaluation("teacher", "0", **facts), threads_used)


def test_claims_that_hold_are_not_flagged():
    assert claims() == ()
    assert claims(precision="tf32", rms_error=3e-4) == claims(precision="fp16", rms_error=3e-4) == ()
    assert claims(threads_used=1.2, affinity=(3,)) == ()
    assert broken_claims(artifact("teacher"), cell("teacher", "0"), None, None) == ()


@pytest.mark.parametrize(
    ("facts", "flag"),
    [
        ({"rms_error": 3e-3}, "“fp32” ran as bf16: outputs differ by 0.3 % from the fp32 CPU reference"),
        ({"rms_error": 3e-4}, "“fp32” ran as tf32 or fp16: outputs differ by 0.03 % from the fp32 CPU reference"),
        ({"precision": "fp16"}, "“fp16” ran as fp32: outputs differ by 1e-05 % from the fp32 CPU reference"),
        ({"m": cell("teacher", "0", backend="openvino:bf16@py")}, "“bf16” ran as fp32: outputs differ by 1e-05 %"),
        ({"m": cell("teacher", "0", "int8", backend="openvino:bf16")}, "“int8” ran as fp32: outputs differ by 1e-05 %"),
        ({"rms_error": None}, "outputs are NaN or infinite where those of the fp32 reference are not"),
        ({"rms_error": None, "bands": {}}, "outputs are NaN or infinite"),
        ({"threads_used": 1.9}, "1.9 threads computed, 1 asked for: the backend has a pool of its own"),
        ({"m": cell("teacher", "0", threads=2), "affinity": (0,)}, "2 threads on 1 CPU: "),
    ],
)
def test_a_claim_that_does_not_hold_is_flagged(facts, flag):
    (found,) = claims(**facts)
    assert found.startswith(flag)


def test_threads_are_told_from_cpu_time_of_all_slices():
    raw = arrays() | {"cpu_s.1": np.asarray([2.0, 1.0, math.nan]), "wall_s.1": np.asarray([1.0, 1.0, math.nan])}
    teacher, student = ladder(result(), raw).rows
    assert (teacher.threads_used, student.threads_used) == (None, pytest.approx(1.5))
    assert (
        student.broken_claims
        == student.flags
        == ("1.5 threads computed, 1 asked for: the backend has a pool of its own",)
    )
    short = {name: values / 10 if name.endswith("_s.1") else values for name, values in raw.items()}
    assert ladder(result(), short).rows[1].threads_used is None


def test_a_file_without_proofs_shows_none():
    shown = details_table(ladder(result(), arrays()))
    assert not {"ran as", "time on provider", "threads used"} & set(shown.header)
    found = evaluation(
        "student", "1", compared=9, bands=BANDS, rms_error=3e-3, time_share={"CPUExecutionProvider": 1.0}
    )
    table = ladder(result(evaluations=(evaluation("teacher", "0"), found)), arrays())
    shown = details_table(table)
    row = dict(zip(shown.header, shown.lines[1], strict=True))
    assert (row["ran as"], row["error to fp32"], row["time on provider"]) == ("bf16", "3.0e-03", "100.0 %")


def test_strict_makes_a_broken_claim_an_error_after_the_report(tmp_path):
    fp32 = models.cnn(tmp_path / "fp32.onnx")
    models.int8(fp32, tmp_path / "partly.onnx", op_types_to_quantize=["MatMul"])
    command = ("bench", "fp32.onnx", "partly.onnx", "--budget", "0.1")
    failed = kdbench(*command, "--strict", "--out", "strict", cwd=tmp_path, check=False)
    assert failed.returncode == 2
    (line,) = failed.stderr.strip().splitlines()
    assert "of 2 cells 1 are not what they claim: partly on cpu (threads 1, batch 1): int8 did not fuse: 3 of 4" in line
    assert (tmp_path / "strict" / "report.md").is_file()
    found, raw = load_result(tmp_path / "strict" / "results.json")
    proofs: dict[str, Proof] = {e.rung: e.proofs[0] for e in found.evaluations}
    assert proofs["fp32"].rms_error < 1e-5
    assert set(proofs["fp32"].bands) == {"fp32", *PRECISIONS}
    by_rung = {row.rung: row for row in ladder(found, raw).rows}
    assert (by_rung["fp32"].ran_as, by_rung["fp32"].broken_claims) == ("fp32", ())
    assert by_rung["partly"].int8_share == 0.25
    assert by_rung["fp32"].fused_share == 0.6  # the three Relu have gone into convolutions, two others are left
    kdbench(*command[:2], "--budget", "0.1", "--strict", "--out", "sound", cwd=tmp_path)
