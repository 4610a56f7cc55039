"""Sweeps over the sizes of symbolic dimensions: what is measured, with what it is compared, and what is refused."""

import csv

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from kdbench import bench
from kdbench.benchmark.cells import Subject, inputs, plan
from kdbench.data.pack import EvalPack
from kdbench.data.sizes import combinations, sweep_of, written
from kdbench.errors import UserError
from kdbench.onnxfile import inspect
from kdbench.pipeline import measuring
from kdbench.records import Bench
from kdbench.report.ladder_tables import details_table, ladder_tables
from kdbench.report.markdown import to_markdown
from kdbench.report.table import ladder
from tests.conftest import save_mlp
from tests.rows import load_rows
from tests.test_report import MACHINE, arrays, cell, result
from tests.test_schedule import settings


def save_images(path, height="height", width="width"):
    """The mean of each channel: [batch, 3, height, width] → [batch, 3]."""
    graph = helper.make_graph(
        [helper.make_node("ReduceMean", ["x"], ["y"], axes=[2, 3], keepdims=0)],
        "means",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 3, height, width])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 3])],
    )
    return save(graph, path)


def save_tokens(path, words=5, length="sequence"):
    """The mean of word vectors from a table of so many `words`."""
    graph = helper.make_graph(
        [
            helper.make_node("Gather", ["table", "tokens"], ["e"]),
            helper.make_node("ReduceMean", ["e"], ["y"], axes=[1], keepdims=0),
        ],
        "words",
        [helper.make_tensor_value_info("tokens", TensorProto.INT64, ["batch", length])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 8])],
        [numpy_helper.from_array(np.ones((words, 8), np.float32), "table")],
    )
    return save(graph, path)


def save(graph, path):
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=10), path)
    return path


def subject(path):
    return Subject(inspect(path), path)


SIZES = st.lists(st.integers(1, 9), min_size=1, max_size=4, unique=True)


@given(SIZES, SIZES)
def test_each_combination_stands_there_once(heights, widths):
    found = combinations({"height": heights, "width": widths})
    assert [(sizes["height"], sizes["width"]) for sizes in found] == [(h, w) for h in heights for w in widths]
    together = combinations({"height,width": heights, "batch": 2})
    assert together == [{"height": size, "width": size, "batch": 2} for size in heights]
    for made in (found, together):
        assert combinations(sweep_of(made)) == made
    assert sweep_of([{"height": 1, "width": 1}, {"height": 2, "width": 3}]) is None


def test_without_sizes_there_is_one_combination():
    assert combinations({}) == [{}]
    assert written({}) == ""
    assert written({"height": 8, "width": 4}) == written({"width": 4, "height": 8}) == "height=8 width=4"


@pytest.mark.parametrize(
    ("sweep", "said"),
    [
        ({"a": [2, 2]}, "--dim a: 2, 2: each one once"),
        ({"a": []}, "--dim a: should have sizes of 1 or more"),
        ({"a": [0]}, "--dim a: should have sizes of 1 or more"),
        ({"a,b": 1, "b": 2}, "--dim b: name each dimension once"),
        ({"a,": 1}, "name each dimension once"),
    ],
)
def test_sizes_that_make_no_sense_are_refused(sweep, said):
    with pytest.raises(UserError, match=said):
        combinations(sweep)


def test_equal_sizes_alone_are_compared():
    sizes = {"0": 4, "1": 4, "2": 8, "3": 8}
    made = result(
        measurements=tuple(
            cell("teacher" if raw in "02" else "student", raw, dims={"sequence": size}) for raw, size in sizes.items()
        )
    )
    values = arrays(speed=2.0)
    values |= {f"latencies.{raw}": factor * values["latencies.0"] for raw, factor in (("2", 10), ("3", 2.5))}
    values |= {f"rounds.{raw}": values["rounds.0"] for raw in "23"}
    found = ladder(made, values)
    assert [row.speedup for row in found.rows] == [None, pytest.approx(2), None, pytest.approx(4)]
    assert [table.title for table in ladder_tables(found)] == [
        f"cpu, 1 thread, batch 4, sequence={size}, against teacher" for size in (4, 8)
    ]
    assert [row.dims for row in found.rows] == ["sequence=4"] * 2 + ["sequence=8"] * 2
    assert "| sequence=8 |" in to_markdown([found])
    assert "sizes" not in details_table(ladder(result(), arrays())).header


def test_a_sweep_from_inputs_to_csv(tmp_path, monkeypatch):
    monkeypatch.setattr("kdbench.pipeline.measuring.describe", lambda: MACHINE)
    path = save_images(tmp_path / "x.onnx")
    report = bench([path], dims={"height,width": [4, 8]}, budget_s=0.1, out=tmp_path / "out")
    shown = ["height=4 width=4", "height=8 width=8"]
    assert [(row.dims, row.error) for row in report.ladder.rows] == [(sizes, None) for sizes in shown]
    with report.csv.open() as file:
        assert [line["dims"] for line in csv.DictReader(file)] == shown
    assert [row.dims for row in load_rows(tmp_path / "out")] == shown
    assert [m.dims for m in report.ladder.result.measurements] == [{"height": n, "width": n} for n in (4, 8)]


def test_the_schedule_feeds_and_pairs_each_size_by_itself(tmp_path):
    subjects = [subject(save_images(tmp_path / name)) for name in ("a.onnx", "b.onnx")]
    schedule = measuring._schedule(plan(subjects, Bench(), {"height,width": [8, 16]}), settings(), None, "a")
    pairs = [(base.cell, other.cell) for base, other in schedule.pairs()]
    assert [(base.dims, other.dims) for base, other in pairs] == [({"height": n, "width": n},) * 2 for n in (8, 16)]
    assert [schedule.feeds(cell)["x"].shape[2:] for cells in pairs for cell in cells] == [(8, 8)] * 2 + [(16, 16)] * 2
    assert len({base.slot for base, _ in pairs}) == 2


def test_inputs_have_the_sizes_of_their_cell(tmp_path):
    cells = plan([subject(save_images(tmp_path / "x.onnx"))], Bench(), {"height,width": [8, 16]})
    assert [inputs(cell, None)["x"].shape for cell in cells] == [(1, 3, 8, 8), (1, 3, 16, 16)]


def test_a_size_that_a_file_fixes_costs_its_own_cells_alone(tmp_path):
    subjects = [
        subject(save_images(tmp_path / name, *size)) for name, size in (("free.onnx", ()), ("fixed.onnx", (8, 8)))
    ]
    free, fixed = plan(subjects, Bench(), {"height,width": 8})
    assert free.error is None
    assert "--dim height: the model has no such dimension: known: batch; x is fixed to batch × 3 × 8 × 8" in fixed.error
    assert "export with that dimension free" in fixed.error


def test_samples_of_a_pack_fix_the_sizes(tmp_path):
    samples = EvalPack("images.npz", np.zeros((3, 3, 8, 8), np.float32), None, None, (), None)
    found = plan([subject(save_images(tmp_path / "x.onnx"))], Bench(), {"height,width": [8, 16]}, samples)
    assert [cell.error for cell in found] == [
        None,
        "--dim height=16: it is 8 in images.npz: give a pack of that size, or measure without one",
    ]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ("--dim heigth=8 --dim width=8", "--dim heigth: the model has no such dimension: did you mean 'height'?"),
        ("--dim height=8", "dimension 'width' has no size: add --dim width=N"),
        ("--dim height=8,x", "'height=x' should be a size of 1 or more"),
        ("--dim height=8,8", "--dim height: 8, 8: each one once"),
        ("--dim height=8 --dim height,width=4", "--dim height: name each dimension once"),
        ("--dim height,width=8 --dim batch=2,4", "--dim batch: the first dimension is the batch: use --batch"),
    ],
)
def test_dimensions_that_cannot_be_measured_are_named(options, said, tmp_path, monkeypatch, mistake):
    save_images(tmp_path / "x.onnx")
    monkeypatch.chdir(tmp_path)
    assert said in mistake(f"bench x.onnx {options}")


def test_scenarios_are_measured_at_one_size(tmp_path, monkeypatch, mistake):
    monkeypatch.chdir(tmp_path)
    save_images(tmp_path / "x.onnx")
    said = mistake("bench x.onnx --scenario offline --dim height,width=8,16")
    assert "--scenario: measured at one size: give each --dim a single one" in said


def test_a_model_without_named_sizes_takes_no_dim(tmp_path):
    with pytest.raises(UserError, match="--dim sequence: the model has no such dimension: known: batch; x is fixed"):
        plan([subject(save_mlp(tmp_path / "x.onnx"))], Bench(), {"sequence": 8})
